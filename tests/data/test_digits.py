import numpy as np
from sklearn import datasets

from sra_jax.data.digits import load_digits


def test_digits_are_those_of_scikit_learn():
    images, labels = load_digits()
    original = datasets.load_digits()
    assert images.shape == (1797, 8, 8, 1) and images.dtype == np.uint8
    assert labels.shape == (1797,) and labels.dtype == np.int32
    assert images.min() == 0 and images.max() == 255
    np.testing.assert_allclose(images[..., 0], original.images * 255 / 16, atol=0.5)
    np.testing.assert_array_equal(labels, original.target)
