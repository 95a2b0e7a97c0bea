"""The train step: one pure function from (state, batch) to (state, metrics).

What is jitted, sharded and donated is decided by the caller; nothing here knows of devices.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from sra_jax.core.errors import InputError
from sra_jax.core.random import stream_key
from sra_jax.methods.sra import SRAConfig, WeightSchedule, draw_times, sra_loss
from sra_jax.models import DiffusionTransformer
from sra_jax.processes import Process
from sra_jax.training.state import TrainState

Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]


@dataclass(frozen=True, kw_only=True)
class StepSettings:
    """How a step is made, beside the method: gradients are accumulated over `microbatches`; with
    `skip_nonfinite`, a step whose loss or gradient is NaN or infinite changes nothing but the
    number of steps.

    Raises:
      InputError: a value out of its range.
    """

    seed: int = 0
    label_dropout: float = 0.1
    ema_decay: float = 0.9999
    microbatches: int = 1
    skip_nonfinite: bool = False

    def __post_init__(self):
        if not 0 <= self.label_dropout <= 1:
            raise InputError(f"label_dropout is {self.label_dropout}, expected in [0, 1]")
        if not 0 <= self.ema_decay < 1:
            raise InputError(f"ema_decay is {self.ema_decay}, expected in [0, 1)")
        if self.microbatches < 1:
            raise InputError(f"microbatches is {self.microbatches}, expected at least 1")


@dataclass(frozen=True, kw_only=True)
class StepConfig(StepSettings):
    """The same for certain data: `scale` and `shift` map a drawn latent to the model's space."""

    scale: float = 1.0
    shift: float = 0.0


class Example(NamedTuple):
    """What the loss sees, all drawn: latents and noise [B, H, W, C], labels and times [B]."""

    x: jax.Array
    labels: jax.Array
    noise: jax.Array
    t: jax.Array
    t_teacher: jax.Array


@dataclass(frozen=True)
class Objective:
    """Model, process and method: what is trained. `sra` is None for plain SiT or DiT."""

    model: DiffusionTransformer
    process: Process
    sra: SRAConfig | None
    weight: WeightSchedule

    @property
    def stride(self) -> int:
        """One example of so many is aligned."""
        return self.sra.stride if self.sra is not None else 1

    def __call__(self, params: Any, ema: Any, example: Example, step: jax.Array):
        """The loss [] to minimise in `params`, and its metrics."""
        losses = sra_loss(
            self.sra,
            self.process,
            partial(self.model.apply, {"params": params}),
            partial(self.model.apply, {"params": ema}),
            partial(self.model.apply, {"params": params}, method="project"),
            *example,
        )
        generation = losses.generation.mean()
        if self.sra is None:
            return generation, {"loss": generation, "generation": generation}
        alignment = losses.alignment.mean()
        loss = generation + self.weight(step) * alignment
        return loss, {
            "loss": loss,
            "generation": generation,
            "alignment": alignment,
            "student_feature_norm": _mean_norm(losses.student_feature),
            "teacher_feature_norm": _mean_norm(losses.teacher_feature),
        }


def make_train_step(
    objective: Objective, optimizer: optax.GradientTransformation, config: StepConfig
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The step on a global batch of `moments` [B, H, W, 2 C] (mean, standard deviation) and
    `labels` [B]. Its metrics are float32 scalars: means over the batch, and the gradient's norm
    before clipping; with `skip_nonfinite` also `skipped`, 1 for a step that was (and whose other
    metrics say why), else 0."""

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        example = draw_example(objective, config, batch, state.step)
        loss = partial(objective, ema=state.ema, step=state.step)
        grads, metrics = accumulate_gradients(
            loss, state.params, example, config.microbatches, objective.stride
        )
        with jax.named_scope("grad_norm"):
            metrics |= {"grad_norm": optax.tree.norm(grads)}
        new_state = apply_gradients(state, grads, optimizer, config.ema_decay)
        if not config.skip_nonfinite:
            return new_state, metrics
        finite = jnp.isfinite(jnp.stack(list(metrics.values()))).all()
        unchanged = state._replace(step=new_state.step)
        kept = jax.tree.map(partial(jnp.where, finite), new_state, unchanged)
        return kept, metrics | {"skipped": 1.0 - finite}

    return train_step


def draw_example(
    objective: Objective, config: StepConfig, batch: Batch, step: jax.Array
) -> Example:
    """Draws latents from their posterior, noise, times and dropped labels for one global batch."""
    key = partial(stream_key, config.seed, step=step)
    mean, std = jnp.split(batch["moments"].astype(jnp.float32), 2, axis=-1)
    x = (mean + std * jax.random.normal(key("latent"), mean.shape)) * config.scale + config.shift
    labels, size = batch["labels"], len(mean)
    dropped = jax.random.uniform(key("label_dropout"), (size,)) < config.label_dropout
    null = objective.model.config.num_classes
    t, t_teacher = draw_times(objective.sra, objective.process, key("time"), key("gap"), size)
    noise = jax.random.normal(key("noise"), x.shape)
    return Example(x, jnp.where(dropped, null, labels), noise, t, t_teacher)


def accumulate_gradients(
    loss: Callable[..., tuple[jax.Array, Metrics]],
    params: Any,
    example: Example,
    microbatches: int,
    together: int = 1,
) -> tuple[Any, Metrics]:
    """Gradient and metrics of the mean loss, over `microbatches` equal parts of the batch, in which
    groups of `together` neighbours stay together."""
    gradient = jax.grad(lambda params, part: loss(params, example=part), has_aux=True)
    if microbatches == 1:
        return gradient(params, example)

    def split(a):  # strided, so that every device of a sharded batch has a share in every part
        groups = a.reshape(-1, microbatches, together, *a.shape[1:]).swapaxes(0, 1)
        return groups.reshape(microbatches, -1, *a.shape[1:])

    def add(total, part):
        return jax.tree.map(jnp.add, total, gradient(params, part)), None

    parts = jax.tree.map(split, example)
    shapes = jax.eval_shape(gradient, params, jax.tree.map(lambda a: a[0], parts))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    total, _ = jax.lax.scan(add, zeros, parts)
    return jax.tree.map(lambda a: a / microbatches, total)


def apply_gradients(
    state: TrainState, grads: Any, optimizer: optax.GradientTransformation, ema_decay: float
) -> TrainState:
    """The optimiser's update, and after it the EMA's, over every parameter."""
    with jax.named_scope("optimizer"):
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
    with jax.named_scope("ema"):
        ema = jax.tree.map(lambda e, p: ema_decay * e + (1 - ema_decay) * p, state.ema, params)
    return TrainState(state.step + 1, params, ema, opt_state)


def _mean_norm(feature: jax.Array) -> jax.Array:
    """Mean over tokens of the L2 norm of a feature [B, N, D]."""
    return jnp.linalg.norm(feature.astype(jnp.float32), axis=-1).mean()
