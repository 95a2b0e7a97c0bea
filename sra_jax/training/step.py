"""The train step: one pure function from (state, batch) to (state, metrics).

What is jitted, sharded and donated is decided by the caller; nothing here knows of devices.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sra_jax.conditioning import drop
from sra_jax.core.errors import InputError
from sra_jax.core.random import stream_key
from sra_jax.methods import Example
from sra_jax.training.objective import Batch, Metrics, Objective
from sra_jax.training.state import TrainState


@dataclass(frozen=True, kw_only=True)
class StepSettings:
    """Settings of the train step that do not depend on the method.

    Attributes:
      seed: of all that is random.
      label_dropout: the probability that an example's condition is dropped.
      ema_decay: of the average of the parameters, which is the teacher and what is sampled.
      microbatches: parts of the batch over which gradients are accumulated.
      skip_nonfinite: a step whose loss or gradient is NaN or infinite changes only the step count.

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
    """The settings, with the `scale` and `shift` that map a drawn latent to the model's space."""

    scale: float = 1.0
    shift: float = 0.0


def make_train_step(
    objective: Objective, optimizer: optax.GradientTransformation, config: StepConfig
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The step on a global batch of `moments` [B, H, W, 2 C] (mean, standard deviation) and of the
    fields of `objective`.

    Its metrics are float32 scalars: means over the batch, and the gradient's norm before clipping.
    With `skip_nonfinite` there is also `skipped`: 1 for a step that was skipped, else 0.
    """

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        example = draw_example(objective, config, batch, state.step)
        loss = partial(objective, ema=state.ema, state=state.method_state, step=state.step)
        grads, (metrics, statistics) = accumulate_gradients(
            loss, state.params, example, config.microbatches, objective.group
        )
        with jax.named_scope("grad_norm"):
            metrics |= {"grad_norm": optax.tree.norm(grads)}
        new_state = apply_gradients(state, grads, optimizer, config.ema_decay)
        method_state = {
            method.name: method.next_state(state.method_state[method.name], statistics[method.name])
            for method in objective.methods
            if method.name in state.method_state
        }
        new_state = new_state._replace(method_state=method_state)
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
    """Draws all that is random for one global batch: latents from their posterior, noise, times,
    dropped conditions, and the methods' own arrays."""
    keys = partial(stream_key, config.seed, step=step)
    mean, std = jnp.split(batch["moments"].astype(jnp.float32), 2, axis=-1)
    x = (mean + std * jax.random.normal(keys("latent"), mean.shape)) * config.scale + config.shift
    dropped = jax.random.uniform(keys("label_dropout"), (len(x),)) < config.label_dropout
    condition = {name: batch[name] for name in objective.conditioning.fields()}
    t = objective.process.draw_time(keys("time"), len(x))
    sizes, methods = objective.trunk.sizes, objective.methods
    return Example(
        x=x,
        condition=drop(objective.conditioning, condition, dropped),
        noise=jax.random.normal(keys("noise"), x.shape),
        t=t,
        fields={name: batch[name] for method in methods for name in method.fields(sizes)},
        draws={method.name: method.draw(keys, objective.process, t, sizes) for method in methods},
    )


def accumulate_gradients(
    loss: Callable[..., tuple[jax.Array, Any]],
    params: Any,
    example: Example,
    microbatches: int,
    group: int = 1,
) -> tuple[Any, Any]:
    """The gradient of the mean loss, accumulated over equal microbatches.

    Args:
      loss: (params, example=...) -> (loss [], anything to be averaged with the gradient).
      params: the parameters to differentiate in.
      example: a tree of arrays [B, ...].
      microbatches: into how many parts the batch is split.
      group: neighbours that stay in one part.

    Returns:
      The gradient, and the average of the loss's second result.
    """
    gradient = jax.grad(lambda params, part: loss(params, example=part), has_aux=True)
    if microbatches == 1:
        return gradient(params, example)

    def split(a):  # strided, so that every device of a sharded batch has a share in every part
        groups = a.reshape(-1, microbatches, group, *a.shape[1:]).swapaxes(0, 1)
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
    return state._replace(step=state.step + 1, params=params, ema=ema, opt_state=opt_state)
