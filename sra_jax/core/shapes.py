"""Shape helpers that every process needs."""

import jax


def per_image(t: jax.Array) -> jax.Array:
    """Reshapes [B] to [B, 1, 1, 1], to multiply images [B, H, W, C]."""
    return t[:, None, None, None]


def per_example_mean(x: jax.Array) -> jax.Array:
    """Returns the mean over everything but the batch: [B, ...] -> [B]."""
    return x.mean(axis=tuple(range(1, x.ndim)))
