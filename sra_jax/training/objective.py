"""The objective: the generation loss of one student pass, and every method's weighted terms."""

import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any

import jax

from sra_jax.conditioning import Conditioning
from sra_jax.core.errors import InputError
from sra_jax.core.random import stream_key
from sra_jax.core.shapes import FieldSpec
from sra_jax.distributed.sharding import Rules
from sra_jax.methods import Example, Method, Networks
from sra_jax.models import Params, Pass, Trunk
from sra_jax.processes import Process

RESERVED = ("loss", "grad_norm", "skipped")  # metrics of the step itself
Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]


def joint_group(methods: Iterable[Method]) -> int:
    """Neighbours in the batch that none of `methods` allows to part."""
    return math.lcm(*(method.group for method in methods))


@dataclass(frozen=True)
class Objective:
    """Trunk, process, conditioning and methods: what is trained. Without methods, plain SiT or DiT.

    Parameters and their EMA are `{"trunk": ..., "method": {NAME: ...}}`.
    """

    trunk: Trunk
    process: Process
    conditioning: Conditioning
    methods: tuple[Method, ...] = ()

    @property
    def group(self) -> int:
        """Neighbours in the batch that a microbatch must not part."""
        return joint_group(self.methods)

    @property
    def rules(self) -> Rules:
        """Sharding rules of the parameters. The methods' come first: the trunk's are less exact."""
        rules = [*(method.rules for method in self.methods), self.trunk.rules]
        return tuple(itertools.chain.from_iterable(rules))

    def fields(self) -> dict[str, FieldSpec]:
        """The record fields that it reads beside the latents."""
        fields = self.conditioning.fields()
        for method in self.methods:
            fields |= method.fields(self.trunk.sizes)
        return fields

    def init(self, seed: int) -> Params:
        """First parameters. A method's do not depend on which others there are."""
        sizes = self.trunk.sizes
        own = {
            method.name: method.init(stream_key(seed, f"init/{method.name}"), sizes)
            for method in self.methods
        }
        trunk = self.trunk.init(stream_key(seed, "init"))
        return {"trunk": trunk, "method": {name: params for name, params in own.items() if params}}

    def __call__(
        self, params: Params, ema: Params, state: Mapping[str, Any], example: Example, step
    ) -> tuple[jax.Array, tuple[Metrics, dict[str, Any]]]:
        """The loss [] to minimise in `params`.

        Returns:
          The loss; and the metrics (scalars), and the methods' statistics.
        """
        process, methods = self.process, self.methods
        student = partial(self.trunk.apply, params["trunk"])
        teacher = partial(self.trunk.apply, jax.lax.stop_gradient(ema["trunk"]))

        # One student pass serves the generation loss and all methods.
        taps = {block for method in methods for block in method.taps()}
        how = reduce(
            lambda how, method: method.student_pass(how, example.draws[method.name]),
            methods,
            Pass(taps=tuple(sorted(taps))),
        )
        x_t = process.corrupt(example.x, example.noise, example.t)
        out = student(x_t, example.t, example.condition, how)
        loss = process.generation_loss(out.prediction, example.x, example.noise, example.t).mean()
        metrics, statistics = {"generation": loss}, {}

        for method in methods:
            name = method.name
            own = params["method"].get(name, {}), state.get(name, ())
            terms = method.terms(Networks(student, teacher, *own), process, example, out)
            losses = {key: values.mean() for key, values in terms.losses.items()}
            reported = [*losses, *terms.metrics]
            taken = {*metrics, *RESERVED}
            if known := [key for key in reported if key in taken or reported.count(key) > 1]:
                raise InputError(
                    f"method {name} reports {known[0]!r}, which is taken; choose another name"
                )
            for value in losses.values():
                loss = loss + method.weight(step) * value
            metrics |= losses | dict(terms.metrics)
            statistics[name] = terms.statistics
        return loss, ({"loss": loss, **metrics}, statistics)
