"""PCA maps against scikit-learn."""

import numpy as np
import pytest
from golden import relative_error
from sklearn.decomposition import PCA

from sra_jax.probing.pca import pca_maps, principal_scores


@pytest.mark.parametrize("shape", [(48, 64), (500, 20), (5, 3)])
def test_scores_are_those_of_scikit_learn(shape):
    """Their signs too: the solver's are arbitrary, and both fix them by the largest loading."""
    x = np.random.default_rng(0).normal(size=shape) @ np.diag(np.linspace(1, 4, shape[1])) + 5
    expected = PCA(3, svd_solver="full").fit_transform(x)
    assert relative_error(principal_scores(x), expected) < 1e-10


def test_two_runs_give_the_same_colours():
    """However the rows are ordered, and with rounding errors of float32."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(64, 16)) * np.linspace(4, 1, 16)
    order = rng.permutation(64)
    again = x[order] * (1 + 1e-7 * rng.normal(size=(64, 16)))
    assert relative_error(principal_scores(again), principal_scores(x)[order]) < 1e-5


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_components_that_are_not_there_score_nothing(rank):
    rng = np.random.default_rng(2)
    x = np.float32(rng.normal(size=(32, rank)) @ rng.normal(size=(rank, 8)) + 100)
    scores = principal_scores(x)
    assert np.abs(scores[:, :rank]).max(initial=1) > 0.1
    assert not scores[:, rank:].any()


def test_maps_lie_where_their_patches_do():
    features = np.zeros((2, 9, 4))
    features[1, 5, 3] = 10  # one patch of the second image: its second row, third column
    maps = pca_maps(features)
    assert maps.shape == (2, 3, 3, 3)
    assert maps[1, 1, 2, 0] == 1 and maps[..., 0].sum() == pytest.approx(1)
    np.testing.assert_array_equal(maps[..., 1:], 0.5)


def test_maps_fill_the_range():
    maps = pca_maps(np.random.default_rng(3).normal(size=(3, 16, 8)))
    np.testing.assert_allclose(maps.min(axis=(0, 1, 2)), 0)
    np.testing.assert_allclose(maps.max(axis=(0, 1, 2)), 1)
