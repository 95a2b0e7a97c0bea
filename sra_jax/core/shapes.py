"""Shapes of arrays whose first axis is the batch, and of the arrays of a record."""

from typing import NamedTuple

import jax


class FieldSpec(NamedTuple):
    """One array of a record: its shape without the batch axis, and its dtype."""

    shape: tuple[int, ...]
    dtype: str


def broadcast_right(a: jax.Array, ndim: int) -> jax.Array:
    """Appends axes of length 1 until `a` has `ndim` axes: [B] -> [B, 1, 1, 1] for images."""
    return a.reshape(a.shape + (1,) * (ndim - a.ndim))


def per_example_mean(x: jax.Array) -> jax.Array:
    """[B, ...] -> [B], the mean over everything but the batch."""
    return x.mean(axis=tuple(range(1, x.ndim)))
