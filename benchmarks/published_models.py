"""Published models with random weights, and their training steps, for the benchmarks to run.

"tiny" is a model of no use in which everything can be tried on a CPU within seconds.

Needs jax, flax and optax only.
"""

import dataclasses
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from sra_jax.conditioning import ClassLabels
from sra_jax.core.random import stream_key
from sra_jax.distributed.hardware import compiler_options
from sra_jax.methods import SRA
from sra_jax.models import DiT, DiTConfig, LatentLayout, parse_variant
from sra_jax.models.sizes import Size
from sra_jax.processes import DDPM, Interpolant, Process
from sra_jax.training.flops import StepFlops, count_flops, step_flops
from sra_jax.training.objective import Batch, Metrics, Objective
from sra_jax.training.optimizer import OptimizerConfig, make_optimizer
from sra_jax.training.state import TrainState, init_state
from sra_jax.training.step import StepConfig, make_train_step

TINY = Size(depth=4, width=32, num_heads=2)
TINY_BLOCKS = {"student_block": 1, "teacher_block": 3}
PROCESSES = {"sit": Interpolant, "dit": DDPM}


def size_of(name: str) -> tuple[Size, int]:
    """The size and the patch size of a model named as "XL/2", or "tiny"."""
    return (TINY, 2) if name == "tiny" else parse_variant(name)


def transformer(name: str, kind: str, side: int = 32, **computes) -> DiTConfig:
    """The SiT or DiT of a published name such as "XL/2", on latents of `side`.

    `computes` are the fields of `DiTConfig` that say how it computes.
    """
    size, patch = size_of(name)
    return DiTConfig(
        LatentLayout(side, side, 4, patch),
        ClassLabels(1000),
        process(kind).outputs,
        **size._asdict(),
        **{"dtype": compute_dtype()} | computes,
    )


def alignment(name: str, kind: str, teacher_fraction: float = 1.0) -> SRA:
    """SRA between the blocks that the paper aligns in that model."""
    fields = TINY_BLOCKS
    if name != "tiny":
        fields = SRA.recipe("paper", name.partition("/")[0], process(kind).outputs, 256)
    return SRA(**fields, teacher_fraction=teacher_fraction)


def process(kind: str) -> Process:
    return PROCESSES[kind]()


def make_objective(config: DiTConfig, sra: SRA | None) -> Objective:
    """What trains that model: SiT or DiT, with SRA or without."""
    (kind,) = (name for name, kind in PROCESSES.items() if kind.outputs == config.outputs)
    methods = () if sra is None else (sra,)
    return Objective(DiT(config), process(kind), config.conditioning, methods)


def train_flops(config: DiTConfig, sra: SRA | None) -> StepFlops:
    """The operations of a training step for one image."""
    plain, rematerialised = (
        make_objective(dataclasses.replace(config, remat=remat, attention="xla"), sra)
        for remat in ("none", config.remat)
    )
    return step_flops(plain, rematerialised)


def forward_flops(config: DiTConfig) -> int:
    """The operations of one image's forward pass."""
    trunk = DiT(dataclasses.replace(config, attention="xla"))
    params = jax.eval_shape(trunk.init, jax.random.key(0))
    x, t = jnp.zeros((1, *config.layout.shape)), jnp.zeros(1)
    return count_flops(trunk.apply, params, x, t, config.conditioning.null(1))


def compute_dtype() -> str:
    """What experiments compute in by default on this device."""
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


class TrainJob:
    """A compiled step, with a state and a batch of its own on the device.

    `memory` is XLA's account of a step in bytes, state included; `flops` the operations of a step
    that the method needs. `options` are given to XLA beside those of `compiler_options`.
    """

    def __init__(
        self,
        config: DiTConfig,
        sra: SRA | None,
        batch_size: int,
        options: Mapping[str, str] | None = None,
    ):
        objective = make_objective(config, sra)
        optimizer = make_optimizer(OptimizerConfig())

        def init() -> TrainState:
            state = init_state(objective, optimizer, 0)
            params = enliven(state.params)
            return state._replace(params=params, ema=jax.tree.map(jnp.copy, params))

        jitted = jax.jit(
            make_train_step(objective, optimizer, StepConfig()),
            donate_argnums=0,
            compiler_options=compiler_options(jax.default_backend()) | dict(options or {}),
        )
        self.batch = random_batch(config, batch_size)
        began = time.perf_counter()
        self.step = jitted.lower(jax.eval_shape(init), self.batch).compile()
        self.compile_seconds = time.perf_counter() - began
        memory = self.step.memory_analysis()  # whose own peak leaves out temporaries on CPUs
        self.memory = (
            memory.argument_size_in_bytes
            + memory.temp_size_in_bytes
            + memory.output_size_in_bytes
            - memory.alias_size_in_bytes
        )
        self.flops = train_flops(config, sra).useful * batch_size
        self.state = jax.jit(init)()

    def run(self, batch: Batch) -> Metrics:
        """One step, started."""
        self.state, metrics = self.step(self.state, batch)
        return metrics


def enliven(params: Any) -> Any:
    """`params` with normal weights of deviation 0.02 where a fresh model has zeros (modulation and
    output): a GPU multiplies zeros faster, so a fresh model would run faster than a trained one."""

    def draw(path, weights):
        layers = [entry.key for entry in path]
        if layers[-1] != "kernel" or layers[-2] not in ("modulation", "linear"):
            return weights
        return 0.02 * jax.random.normal(stream_key(0, "/".join(layers)), weights.shape)

    return jax.tree_util.tree_map_with_path(draw, params)


def random_batch(config: DiTConfig, size: int) -> Batch:
    """Moments, in the dtype that data sets hold, and labels, on the device."""
    height, width, channels = config.layout.shape
    shape = (size, height, width, 2 * channels)
    labels = jax.random.randint(jax.random.key(1), (size,), 0, config.conditioning.num_classes)
    return {"moments": jax.random.uniform(jax.random.key(0), shape, jnp.float16), "labels": labels}
