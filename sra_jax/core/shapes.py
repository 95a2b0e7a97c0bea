"""Shapes that every process needs."""

import jax


def per_image(t: jax.Array) -> jax.Array:
    """[B] -> [B, 1, 1, 1], to multiply images."""
    return t[:, None, None, None]


def per_example_mean(x: jax.Array) -> jax.Array:
    """[B, ...] -> [B], the mean over everything but the batch."""
    return x.mean(axis=tuple(range(1, x.ndim)))
