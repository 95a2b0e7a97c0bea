"""k-NN accuracy against scikit-learn."""

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from sra_jax.probing.knn import knn_accuracy


@pytest.mark.parametrize("neighbours", [1, 5, 20])
def test_accuracy_is_that_of_scikit_learn(neighbours):
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(2, 6, 12))
    labels, test_labels = rng.integers(6, size=300), rng.integers(6, size=517)
    train = centres[:, labels] + rng.normal(size=(2, 300, 12))
    test = centres[:, test_labels] + rng.normal(size=(2, 517, 12))
    train[1] *= 3
    found = knn_accuracy(
        np.float32(train), labels, np.float32(test), test_labels, 6, neighbours=neighbours
    )
    for i in range(2):
        model = KNeighborsClassifier(neighbours, metric="cosine").fit(np.float32(train[i]), labels)
        expected = model.score(np.float32(test[i]), test_labels)
        assert found[i] == pytest.approx(expected, abs=1e-6)
        assert 0.3 < expected < 0.99


def test_with_few_images_all_vote():
    train = np.eye(3, dtype=np.float32)[None]
    assert knn_accuracy(train, np.array([1, 0, 1]), train, np.array([1, 1, 1]), 2)[0] == 1


def test_features_of_zero_have_neighbours_too():
    zeros = np.zeros((1, 4, 3), np.float32)
    assert knn_accuracy(zeros, np.array([2, 2, 2, 2]), zeros, np.array([2, 2, 0, 2]), 3)[0] == 0.75
