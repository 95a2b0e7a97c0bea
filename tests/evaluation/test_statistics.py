"""The Fréchet distance against scipy's matrix square root and against closed forms."""

import numpy as np
import pytest
import scipy.linalg

from sra_jax.evaluation.statistics import (
    Gaussian,
    Moments,
    fit_gaussian,
    frechet_distance,
    warn_of_bias,
)


def random_gaussian(seed: int, size: int, rank: int | None = None) -> Gaussian:
    rng = np.random.default_rng(seed)
    factor = rng.normal(size=(size, rank or 2 * size))
    return Gaussian(rng.normal(size=size), factor @ factor.T / size)


def by_scipy(a: Gaussian, b: Gaussian) -> float:
    """Dowson & Landau's formula, taken literally."""
    root = scipy.linalg.sqrtm(a.covariance @ b.covariance).real
    return np.sum((a.mean - b.mean) ** 2) + np.trace(a.covariance + b.covariance - 2 * root)


@pytest.mark.parametrize("size", [1, 2, 16, 128])
@pytest.mark.parametrize("seed", [0, 1])
def test_agrees_with_scipy(seed, size):
    a, b = random_gaussian(seed, size), random_gaussian(seed + 10, size)
    assert frechet_distance(a, b) == pytest.approx(by_scipy(a, b), rel=1e-9)
    assert frechet_distance(b, a) == pytest.approx(frechet_distance(a, b), rel=1e-9)


def test_in_one_dimension_is_the_distance_of_means_and_deviations():
    a = Gaussian(np.array([1.0]), np.array([[4.0]]))
    b = Gaussian(np.array([-2.0]), np.array([[9.0]]))
    assert frechet_distance(a, b) == pytest.approx(3.0**2 + (2.0 - 3.0) ** 2)


def test_of_commuting_covariances_is_that_of_their_axes():
    rng = np.random.default_rng(0)
    axes, _ = np.linalg.qr(rng.normal(size=(6, 6)))
    first, second = rng.uniform(0.1, 3, size=(2, 6))
    a = Gaussian(np.zeros(6), axes @ np.diag(first**2) @ axes.T)
    b = Gaussian(np.zeros(6), axes @ np.diag(second**2) @ axes.T)
    assert frechet_distance(a, b) == pytest.approx(np.sum((first - second) ** 2))


@pytest.mark.parametrize("rank", [None, 3])
def test_of_equals_is_zero(rank):
    a = random_gaussian(0, 32, rank)
    assert 0 <= frechet_distance(a, a) < 1e-6 * np.trace(a.covariance)


def test_of_a_shift_is_its_square_length():
    a = random_gaussian(0, 32)
    shift = np.random.default_rng(1).normal(size=32)
    moved = Gaussian(a.mean + shift, a.covariance)
    assert frechet_distance(a, moved) == pytest.approx(shift @ shift, rel=1e-9)


def test_singular_covariances():
    """Where scipy's root of the product is of no use, as on digits whose corners are all black."""
    # Two orthogonal planes share nothing: what is left is both traces.
    a = Gaussian(np.zeros(4), np.diag([1.0, 4.0, 0.0, 0.0]))
    b = Gaussian(np.zeros(4), np.diag([0.0, 0.0, 9.0, 16.0]))
    assert frechet_distance(a, b) == pytest.approx(1 + 4 + 9 + 16)
    # A point: the distance of every other to it is the mean square distance.
    point = Gaussian(np.ones(4), np.zeros((4, 4)))
    assert frechet_distance(point, b) == pytest.approx(4 + 9 + 16)
    # Low rank, rotated: padding with zeros and turning leaves a distance as it is.
    small = random_gaussian(2, 3), random_gaussian(3, 3)
    turn, _ = np.linalg.qr(np.random.default_rng(4).normal(size=(20, 3)))
    large = [Gaussian(turn @ g.mean, turn @ g.covariance @ turn.T) for g in small]
    assert frechet_distance(*large) == pytest.approx(frechet_distance(*small), rel=1e-6)


def test_agrees_with_a_transport_of_samples():
    """In one dimension the optimal plan pairs sorted samples: no formula of normals is needed."""
    rng = np.random.default_rng(0)
    first, second = rng.normal(1.0, 2.0, 200_000), rng.normal(-0.5, 0.7, 200_000)
    transported = np.mean((np.sort(first) - np.sort(second)) ** 2)
    fitted = frechet_distance(fit_gaussian(first[:, None]), fit_gaussian(second[:, None]))
    assert fitted == pytest.approx(transported, rel=0.01)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.uint8])
def test_fit_is_mean_and_unbiased_covariance(dtype):
    features = np.random.default_rng(0).integers(0, 256, size=(50, 7)).astype(dtype)
    fitted = fit_gaussian(features)
    assert fitted.mean.dtype == fitted.covariance.dtype == np.float64
    exact = features.astype(np.float64)
    centred = exact - exact.sum(axis=0) / 50
    np.testing.assert_allclose(fitted.mean, exact.sum(axis=0) / 50, rtol=1e-12)
    np.testing.assert_allclose(fitted.covariance, centred.T @ centred / 49, rtol=1e-9, atol=1e-9)


def test_fit_of_one_feature_is_a_matrix():
    assert fit_gaussian(np.array([[1.0], [3.0]])).covariance.tolist() == [[2.0]]


@pytest.mark.parametrize("counts", [(5, 9), (40, 300)])
def test_of_few_samples_is_that_of_their_products(counts):
    """tr (A B)^(1/2) is the nuclear norm of X Y^T for A = X^T X and B = Y^T Y: no [D, D] matrix."""
    rng = np.random.default_rng(0)
    first, second = (rng.normal(size=(count, 64)) * rng.uniform(0, 3, 64) for count in counts)
    x, y = ((a - a.mean(axis=0)) / np.sqrt(len(a) - 1) for a in (first, second))
    shift = first.mean(axis=0) - second.mean(axis=0)
    root = np.linalg.svd(x @ y.T, compute_uv=False).sum()
    expected = shift @ shift + np.sum(x**2) + np.sum(y**2) - 2 * root
    found = frechet_distance(fit_gaussian(first), fit_gaussian(second))
    assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("offset", [0, 1e4])
def test_moments_of_batches_are_those_of_numpy(offset):
    """Whatever the batches, in one accumulator or merged from several, and far from zero."""
    rng = np.random.default_rng(0)
    features = (rng.normal(size=(500, 24)) @ rng.normal(size=(24, 24)) + offset).astype(np.float32)
    whole, parts = Moments(), [Moments() for _ in range(4)]  # the last one stays empty
    for number, batch in enumerate(np.split(features, [1, 7, 200, 201, 460])):
        whole.add(batch)
        parts[number % 3].add(batch)
    for part in parts[1:]:
        parts[0].merge(part)
    exact = features.astype(np.float64)
    for moments in (whole, parts[0]):
        mean, covariance = moments.gaussian()
        assert moments.count == 500
        np.testing.assert_allclose(mean, exact.mean(axis=0), rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(covariance, np.cov(exact, rowvar=False), rtol=1e-9, atol=1e-9)


def test_moments_can_be_asked_in_between():
    features = np.random.default_rng(0).normal(size=(6, 3))
    moments = Moments()
    moments.add(features[:3])
    before = moments.gaussian()
    moments.add(features[3:])
    np.testing.assert_allclose(before.mean, features[:3].mean(axis=0))
    np.testing.assert_allclose(before.covariance, np.cov(features[:3], rowvar=False))


def test_few_images_are_warned_of(caplog):
    warn_of_bias("FID", 2049, 2048)
    assert not caplog.records
    warn_of_bias("FID", 2048, 2048)
    assert "FID is biased upward: 2,048 images" in caplog.text and "50,000" in caplog.text
    caplog.clear()
    warn_of_bias("FID", 64, 64, published=False)
    assert "use more than 64, and equally many" in caplog.text and "papers" not in caplog.text
