"""The interface of a method: what is trained beside plain denoising.

A method is one frozen dataclass in one file, and one line in `methods/__init__.py`. It overrides
the hooks that it uses; all of them are pure functions. docs/methods.md explains how to add one.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

import jax

from sra_jax.conditioning import Condition
from sra_jax.core.errors import InputError
from sra_jax.core.shapes import FieldSpec
from sra_jax.distributed.sharding import Rules
from sra_jax.methods.schedule import WeightSchedule
from sra_jax.models import Output, Params, Pass, Sizes
from sra_jax.processes import Process

Keys = Callable[[str], jax.Array]
"""From the name of a random stream to its key at this step. Every method names its own streams."""


class Network(Protocol):
    """A trunk with its parameters."""

    def __call__(
        self, x_t: jax.Array, t: jax.Array, condition: Condition, how: Pass = ...
    ) -> Output: ...


class Networks(NamedTuple):
    """The networks that a method may call.

    Attributes:
      student: the trunk that is trained.
      teacher: the same trunk with the EMA's parameters; no gradient reaches them.
      params: the method's own parameters.
      state: the method's own state.
    """

    student: Network
    teacher: Network
    params: Params
    state: Any


class Example(NamedTuple):
    """A batch with everything random drawn. A microbatch is a slice of every array.

    Attributes:
      x: latents [B, H, W, C].
      condition: what the model is told, dropped where label dropout says so.
      noise: [B, H, W, C].
      t: times [B].
      fields: the record fields that methods ask for, each [B, ...].
      draws: by method, the arrays [B, ...] that it has drawn.
    """

    x: jax.Array
    condition: Condition
    noise: jax.Array
    t: jax.Array
    fields: Mapping[str, jax.Array]
    draws: Mapping[str, Mapping[str, jax.Array]]


class Terms(NamedTuple):
    """A method's part of the objective.

    Attributes:
      losses: one value an example [B] (or [A], if only some are used); their means are added to the
        loss, times the method's weight.
      metrics: scalars to report.
      statistics: arrays for `Method.next_state`, averaged over microbatches.
    """

    losses: Mapping[str, jax.Array]
    metrics: Mapping[str, jax.Array] = {}
    statistics: Any = ()


@dataclass(frozen=True, kw_only=True)
class Method:
    """What is trained beside plain denoising; this one adds nothing."""

    name: ClassVar[str]
    """The method's name in configs, parameters and checkpoints."""

    recipes: ClassVar[tuple[str, ...]] = ("paper",)
    """Published settings by name, the default first."""

    needs: ClassVar[frozenset[str]] = frozenset()
    """What its passes use of a trunk: "route", "groups"; see `Trunk.supports`."""

    rules: ClassVar[Rules] = ()
    """Sharding rules of its parameters; without any, the fallback of `tree_shardings`."""

    torch_names: ClassVar[Mapping[str, str]] = {}
    """Paths of linear layers in `params`, by the names that they have in PyTorch files."""

    weight: WeightSchedule = WeightSchedule(1.0)

    @property
    def group(self) -> int:
        """Examples that stay together in every microbatch and on every device."""
        return 1

    @classmethod
    def recipe(cls, recipe: str, size: str, outputs: int, resolution: int) -> dict[str, Any]:
        """Config fields of a published setting.

        Args:
          recipe: one of `recipes`.
          size: of the trunk: S, B, L or XL.
          outputs: 1 for SiT, 2 for DiT.
          resolution: of the images, 256 or 512.
        """
        return {}

    def check(self, sizes: Sizes) -> None:
        """Raises InputError unless the method goes with a trunk of these sizes."""
        for block in self.taps():
            if not 1 <= block <= sizes.depth:
                raise InputError(
                    f"method.{self.name} uses block {block}, but the model has {sizes.depth} blocks"
                )

    def fields(self, sizes: Sizes) -> dict[str, FieldSpec]:
        """The record fields that it needs beside latents and condition."""
        return {}

    def taps(self) -> tuple[int, ...]:
        """The blocks of the student's pass whose features `terms` reads."""
        return ()

    def init(self, key: jax.Array, sizes: Sizes) -> Params:
        """Its parameters: trained, averaged and saved like the trunk's, left out of exports."""
        return {}

    def init_state(self, sizes: Sizes) -> Any:
        """Arrays that are saved but not trained, such as a centre."""
        return ()

    def draw(
        self, keys: Keys, process: Process, t: jax.Array, sizes: Sizes
    ) -> dict[str, jax.Array]:
        """Its random arrays [B, ...] for a global batch of times `t` [B]."""
        return {}

    def student_pass(self, how: Pass, draws: Mapping[str, jax.Array]) -> Pass:
        """Changes how the student's pass runs."""
        return how

    def terms(self, nets: Networks, process: Process, example: Example, out: Output) -> Terms:
        """Its losses and metrics, given the student's output `out` on the example."""
        return Terms({})

    def next_state(self, state: Any, statistics: Any) -> Any:
        """Its state after the step."""
        return state
