"""Published models with random weights, and their training steps, for the benchmarks to run.

"tiny" is a model of no use in which everything can be tried on a CPU within seconds.

Needs jax, flax and optax only.
"""

import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from sra_jax.core.random import stream_key
from sra_jax.distributed.hardware import compiler_options
from sra_jax.methods.sra import SRAConfig, WeightSchedule
from sra_jax.models import DiffusionTransformer, TransformerConfig, parse_variant
from sra_jax.models.sizes import Size
from sra_jax.processes import DDPM, Interpolant, Process
from sra_jax.training.flops import step_flops
from sra_jax.training.optimizer import OptimizerConfig, make_optimizer
from sra_jax.training.state import TrainState, init_state
from sra_jax.training.step import Batch, Metrics, Objective, StepConfig, make_train_step

TINY = Size(depth=4, width=32, num_heads=2, sit_blocks=(1, 3), dit_blocks=(1, 3))


def size_of(name: str) -> tuple[Size, int]:
    """The size and the patch size of a model named as "XL/2", or "tiny"."""
    return (TINY, 2) if name == "tiny" else parse_variant(name)


def transformer(name: str, kind: str, side: int = 32, **computes) -> TransformerConfig:
    """The model of a published name as "XL/2", on latents of `side`; `computes` are its fields that
    say how it computes."""
    size, patch = size_of(name)
    return TransformerConfig(
        kind=kind,
        input_size=side,
        patch_size=patch,
        in_channels=4,
        width=size.width,
        depth=size.depth,
        num_heads=size.num_heads,
        num_classes=1000,
        **{"dtype": compute_dtype()} | computes,
    )


def alignment(name: str, kind: str, teacher_fraction: float = 1.0) -> SRAConfig:
    """The blocks that the paper aligns in that model."""
    size, _ = size_of(name)
    blocks = {"sit": size.sit_blocks, "dit": size.dit_blocks}[kind]
    return SRAConfig(*blocks, teacher_fraction=teacher_fraction)


def process(kind: str) -> Process:
    return {"sit": Interpolant, "dit": DDPM}[kind]()


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
        config: TransformerConfig,
        sra: SRAConfig | None,
        batch_size: int,
        options: Mapping[str, str] | None = None,
    ):
        weight = WeightSchedule(0.2)
        objective = Objective(DiffusionTransformer(config), process(config.kind), sra, weight)
        optimizer = make_optimizer(OptimizerConfig())

        def init() -> TrainState:
            state = init_state(objective.model, optimizer, 0, sra is not None)
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
        self.flops = step_flops(config, sra).useful * batch_size
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


def random_batch(config: TransformerConfig, size: int) -> Batch:
    """Moments, in the dtype that data sets hold, and labels, on the device."""
    shape = (size, config.input_size, config.input_size, 2 * config.in_channels)
    labels = jax.random.randint(jax.random.key(1), (size,), 0, config.num_classes)
    return {"moments": jax.random.uniform(jax.random.key(0), shape, jnp.float16), "labels": labels}
