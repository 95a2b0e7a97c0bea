"""Inception Score, precision and recall against independent computations and closed forms."""

import numpy as np
import pytest
import scipy.special
import scipy.stats
from sklearn.neighbors import NearestNeighbors

from sra_jax.core.errors import InputError
from sra_jax.evaluation.scores import PrecisionRecall, inception_score, precision_recall


def score_by_scipy(logits):
    """exp of the mean KL divergence."""
    p = scipy.special.softmax(logits.astype(np.float64), axis=1)
    mean = np.broadcast_to(p.mean(axis=0), p.shape)
    return np.exp(np.mean(scipy.stats.entropy(p, mean, axis=1)))


def coverage_by_sklearn(points, centres):
    distances, _ = NearestNeighbors(n_neighbors=4).fit(centres).kneighbors(centres)
    radii = distances[:, -1]
    inside = [(np.linalg.norm(centres - point, axis=1) <= radii).any() for point in points]
    return np.mean(inside)


def test_inception_score_agrees_with_scipy():
    logits = 3 * np.random.default_rng(0).normal(size=(400, 30)).astype(np.float32)
    assert inception_score(logits) == pytest.approx(score_by_scipy(logits), rel=1e-9)


def test_inception_score_is_the_mean_of_splits_of_5000():
    logits = 3 * np.random.default_rng(0).normal(size=(11_000, 5)).astype(np.float32)
    logits[5000:10_000] *= 2
    expected = np.mean([score_by_scipy(logits[i : i + 5000]) for i in (0, 5000, 10_000)])
    assert inception_score(logits) == pytest.approx(expected, rel=1e-9)


def test_inception_score_at_its_ends():
    certain = 1e4 * np.eye(8, dtype=np.float32)[np.arange(80) % 8]
    assert inception_score(certain) == pytest.approx(8)  # as many as there are classes
    assert inception_score(certain[::8]) == pytest.approx(1)  # all of one class
    assert inception_score(np.full((10, 8), 500, np.float32)) == pytest.approx(1)


@pytest.mark.parametrize("counts", [(1500, 900), (60, 1100)])  # more and less than a block of rows
def test_precision_and_recall_agree_with_sklearn(counts):
    rng = np.random.default_rng(0)
    real = rng.normal(size=(counts[0], 6)).astype(np.float32)
    samples = (0.8 * rng.normal(size=(counts[1], 6)) + 0.5).astype(np.float32)
    found = precision_recall(real, samples)
    assert found.precision == pytest.approx(coverage_by_sklearn(samples, real), abs=1e-9)
    assert found.recall == pytest.approx(coverage_by_sklearn(real, samples), abs=1e-9)
    assert 0.1 < found.recall < found.precision < 1


def test_precision_and_recall_where_they_are_known():
    rng = np.random.default_rng(0)
    real = rng.normal(size=(200, 4))
    assert precision_recall(real, real) == (1, 1)
    assert precision_recall(real, real + 100) == (0, 0)
    # All samples in one corner of the data: each is real, and they cover only that corner.
    corner = np.concatenate([real, real + 100])
    found = precision_recall(corner, real)
    assert found == PrecisionRecall(precision=1, recall=0.5)


def test_too_few_points_are_refused():
    points = np.random.default_rng(0).normal(size=(10, 4))
    with pytest.raises(InputError, match="the samples are 3; give more, or leave pr out"):
        precision_recall(points, points[:3])
    with pytest.raises(InputError, match="the reference are 3"):
        precision_recall(points[:3], points)
