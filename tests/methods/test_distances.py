"""Distances of features, against formulas written out in float64."""

import jax.numpy as jnp
import numpy as np
import pytest

from sra_jax.methods.distances import DISTANCES


def plain_smooth_l1(a, b, beta=0.05):
    """torch.nn.functional.smooth_l1_loss(a, b, beta=beta), elementwise as its documentation says,
    then averaged for each example."""
    loss = np.zeros(a.shape)
    for i, d in np.ndenumerate(np.abs(a - b)):
        loss[i] = 0.5 * d * d / beta if d < beta else d - 0.5 * beta
    return loss.mean((1, 2))


def plain_cosine(a, b):
    """One minus the cosine of every token, averaged for each example."""
    return np.array(
        [
            np.mean(
                [
                    1 - p @ q / np.linalg.norm(p) / np.linalg.norm(q)
                    for p, q in zip(*pair, strict=True)
                ]
            )
            for pair in zip(a, b, strict=True)
        ]
    )


PLAIN = {
    "smooth_l1": plain_smooth_l1,
    "l1": lambda a, b: np.abs(a - b).mean((1, 2)),
    "l2": lambda a, b: ((a - b) ** 2).mean((1, 2)),
    "cosine": plain_cosine,
    "cosine_over_tokens": lambda a, b: plain_cosine(a.swapaxes(1, 2), b.swapaxes(1, 2)),
}


@pytest.mark.parametrize("spread", [0.02, 0.1, 3.0])
@pytest.mark.parametrize("distance", PLAIN)
def test_distances_are_their_formulas(distance, spread):
    rng = np.random.default_rng(0)
    target = rng.normal(size=(3, 5, 8)).astype(np.float32)
    prediction = (target + spread * rng.normal(size=target.shape)).astype(np.float32)
    actual = DISTANCES[distance](jnp.asarray(prediction), jnp.asarray(target))
    expected = PLAIN[distance](prediction.astype(np.float64), target.astype(np.float64))
    if "cosine" in distance:  # near parallel features, 1 - cosine keeps the digits of 1
        np.testing.assert_allclose(actual, expected, atol=3e-7)
    else:
        np.testing.assert_allclose(actual, expected, rtol=1e-6)
    assert not jnp.isnan(DISTANCES[distance](jnp.zeros((1, 2, 3)), jnp.zeros((1, 2, 3)))).any()


@pytest.mark.parametrize("distance", PLAIN)
def test_distances_are_taken_in_float32(distance):
    rng = np.random.default_rng(1)
    pair = [jnp.asarray(rng.normal(size=(2, 64, 32)), jnp.bfloat16) for _ in range(2)]
    actual = DISTANCES[distance](*pair)
    assert actual.dtype == jnp.float32
    expected = PLAIN[distance](*(np.asarray(a, np.float64) for a in pair))
    np.testing.assert_allclose(actual, expected, rtol=3e-6)
