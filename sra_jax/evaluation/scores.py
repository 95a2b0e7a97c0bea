"""Inception Score, and precision and recall."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sra_jax.core.errors import InputError

SPLIT = 5000
NEIGHBOURS = 3
ROWS = 1024


class PrecisionRecall(NamedTuple):
    """Both in [0, 1]."""

    precision: float
    recall: float


def inception_score(logits: np.ndarray) -> float:
    """Inception Score (Salimans et al. 2016) from `logits` [N, classes]; higher is better, 1 is the
    least: exp of the mean KL divergence of p(class | image) from its mean over the images.

    Computed as by the ADM suite (Dhariwal & Nichol 2021): from the unbiased logits of all 1008
    classes, averaged over splits of 5000 consecutive images, 10 for 50,000 images. The last split
    may have fewer. Fewer images give a lower score.
    """
    splits = [logits[i : i + SPLIT] for i in range(0, len(logits), SPLIT)]
    return float(np.mean([_score(split.astype(np.float64)) for split in splits]))


def precision_recall(real: np.ndarray, samples: np.ndarray) -> PrecisionRecall:
    """Improved precision and recall (Kynkäänniemi et al. 2019) of features [M, D] and [N, D].

    A set covers a point that lies in a ball around one of the set's points; the ball's radius is
    the distance from its centre to the third neighbour. Precision is the share of samples that the
    real images cover; recall is the share of real images that the samples cover.

    Definition and k = 3 are the ADM suite's. That suite compares distances in float16 if they fit;
    these are float32, so the last digits may differ. Both numbers depend on M and N: the suite uses
    10,000 real images and 50,000 samples. Memory holds [1024, M] or [1024, N] distances at a time.

    Raises:
        InputError: a set has fewer than four images.
    """
    real, samples = jnp.asarray(real, jnp.float32), jnp.asarray(samples, jnp.float32)
    for what, points in (("reference", real), ("samples", samples)):
        if len(points) <= NEIGHBOURS:
            raise InputError(
                f"precision and recall need more than {NEIGHBOURS} images, but the {what} are "
                f"{len(points)}; give more, or leave pr out of --metrics"
            )
    real_radii, sample_radii = _radii(real), _radii(samples)
    return PrecisionRecall(
        precision=_covered_share(samples, real, real_radii),
        recall=_covered_share(real, samples, sample_radii),
    )


def _score(logits: np.ndarray) -> float:
    """The Inception Score of one split [N, classes], in float64."""
    logits = logits - logits.max(axis=1, keepdims=True)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    p = np.exp(log_p)
    mean = p.mean(axis=0)
    # 0 * log 0 is 0, for classes that do not occur.
    entropy = -np.sum(mean * np.log(np.where(mean > 0, mean, 1)))
    return np.exp(np.mean(np.sum(p * log_p, axis=1)) + entropy)


def _radii(points: jax.Array) -> np.ndarray:
    """Squared distance [N] from each of `points` [N, D] to its third neighbour."""
    return _by_rows(lambda rows: _kth_distance(rows, points), points)


def _covered_share(points: jax.Array, centres: jax.Array, radii: np.ndarray) -> float:
    """Share of `points` [N, D] inside a ball around `centres` [M, D] of squared `radii` [M]."""
    return float(np.mean(_by_rows(lambda rows: _in_a_ball(rows, centres, radii), points)))


def _by_rows(function: Callable[[jax.Array], jax.Array], points: jax.Array) -> np.ndarray:
    """Applies `function`, from [ROWS, D] to [ROWS], to ROWS of the `points` at a time: [N]."""
    results = []
    for start in range(0, len(points), ROWS):
        rows = points[start : start + ROWS]
        filled = jnp.pad(rows, ((0, ROWS - len(rows)), (0, 0)))  # one shape compiles once
        results.append(np.asarray(function(filled))[: len(rows)])
    return np.concatenate(results)


@jax.jit
def _kth_distance(rows: jax.Array, points: jax.Array) -> jax.Array:
    # The first neighbour is the point itself.
    nearest, _ = jax.lax.top_k(-_squared_distances(rows, points), NEIGHBOURS + 1)
    return -nearest[:, -1]


@jax.jit
def _in_a_ball(rows: jax.Array, centres: jax.Array, radii: jax.Array) -> jax.Array:
    return (_squared_distances(rows, centres) <= radii).any(axis=1)


def _squared_distances(a: jax.Array, b: jax.Array) -> jax.Array:
    """[N, D] and [M, D] -> [N, M]."""
    product = jnp.matmul(a, b.T, precision=jax.lax.Precision.HIGHEST)
    squares = jnp.sum(a * a, axis=1)[:, None] + jnp.sum(b * b, axis=1)
    return jnp.maximum(squares - 2 * product, 0)
