"""What training carries from step to step: no generator, no iterator, as the step tells both."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from sra_jax.core.random import stream_key
from sra_jax.models import DiffusionTransformer, init_params


class TrainState(NamedTuple):
    """`step` int32 []: updates made; `params` and `ema` float32, of one structure; `opt_state`."""

    step: jax.Array
    params: Any
    ema: Any
    opt_state: Any


def init_state(
    model: DiffusionTransformer, optimizer: optax.GradientTransformation, seed: int, head: bool
) -> TrainState:
    """The state before the first step; the EMA, the teacher, starts as a copy of the student."""
    params = init_params(model, stream_key(seed, "init"), head)
    ema = jax.tree.map(jnp.copy, params)  # a copy, not an alias: the step donates both
    return TrainState(jnp.zeros((), jnp.int32), params, ema, optimizer.init(params))


def nonfinite_leaves(state: TrainState) -> list[str]:
    """The paths of the arrays of `state` that hold a NaN or an infinity; waits for the devices.

    One jitted pass where the arrays live. A step's metrics tell most of what goes wrong, but not an
    update or an average that overflows while loss and gradient are finite.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    finite = jax.device_get(_finite([leaf for _, leaf in leaves]))
    named = (jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves)
    return [name for name, good in zip(named, finite, strict=True) if not good]


@jax.jit
def _finite(leaves: list[jax.Array]) -> jax.Array:
    """Whether each leaf is finite throughout: bool [leaves]."""
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves])
