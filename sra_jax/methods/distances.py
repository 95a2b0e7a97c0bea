"""Distances of features [B, N, D] -> [B], computed in float32."""

import jax
import jax.numpy as jnp

SMOOTH_L1_BETA = 0.05
COSINE_EPS = 1e-8


def smooth_l1(prediction: jax.Array, target: jax.Array) -> jax.Array:
    """Huber's loss over beta = 0.05, averaged: the paper's."""
    error = jnp.abs(_difference(prediction, target))
    quadratic = 0.5 * jnp.square(error) / SMOOTH_L1_BETA
    loss = jnp.where(error < SMOOTH_L1_BETA, quadratic, error - 0.5 * SMOOTH_L1_BETA)
    return loss.mean((1, 2))


def l1(prediction: jax.Array, target: jax.Array) -> jax.Array:
    """Mean absolute error."""
    return jnp.abs(_difference(prediction, target)).mean((1, 2))


def l2(prediction: jax.Array, target: jax.Array) -> jax.Array:
    """Mean squared error."""
    return jnp.square(_difference(prediction, target)).mean((1, 2))


def cosine(prediction: jax.Array, target: jax.Array) -> jax.Array:
    """One minus the cosine over features, averaged over tokens: the authors' later advice."""
    return 1 - _cosine(prediction, target, axis=-1).mean(1)


def cosine_over_tokens(prediction: jax.Array, target: jax.Array) -> jax.Array:
    """One minus the cosine over tokens, averaged over features: what the released code computes
    where it says cosine. For parity with it alone."""
    return 1 - _cosine(prediction, target, axis=1).mean(1)


def _difference(prediction, target):
    return prediction.astype(jnp.float32) - target.astype(jnp.float32)


def _cosine(a, b, axis):
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    norms = [jnp.sqrt(jnp.maximum(jnp.sum(v * v, axis), COSINE_EPS**2)) for v in (a, b)]
    return jnp.sum(a * b, axis) / (norms[0] * norms[1])


DISTANCES = {
    "smooth_l1": smooth_l1,
    "l1": l1,
    "l2": l2,
    "cosine": cosine,
    "cosine_over_tokens": cosine_over_tokens,
}
