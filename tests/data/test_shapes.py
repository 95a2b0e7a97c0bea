import numpy as np
import pytest
from scipy import ndimage
from sklearn.linear_model import RidgeClassifier

from sra_jax.data.shapes import (
    NUM_CLASSES,
    SHAPES,
    TEXTURES,
    TRAINING,
    draw_shapes,
    load_shapes,
)


@pytest.fixture(scope="module")
def some():
    return draw_shapes(0, 1600)


def test_images_are_a_function_of_seed_and_index_alone(some):
    images, labels = some
    assert images.shape == (1600, 32, 32, 3) and images.dtype == np.uint8
    assert labels.dtype == np.int32
    for start, stop in ((0, 1), (77, 300), (255, 1025), (1599, 1600)):
        again, again_labels = draw_shapes(start, stop)
        np.testing.assert_array_equal(again, images[start:stop])
        np.testing.assert_array_equal(again_labels, labels[start:stop])
    other, _ = draw_shapes(0, 16, seed=1)
    assert (other != images[:16]).any(axis=(1, 2, 3)).all()


def test_the_training_set_is_balanced_and_shares_no_image_with_what_follows():
    images, labels = load_shapes()
    assert len(images) == TRAINING
    assert np.bincount(labels).tolist() == [TRAINING // NUM_CLASSES] * NUM_CLASSES
    others, _ = draw_shapes(TRAINING, TRAINING + 2000)
    distinct = {image.tobytes() for image in (*images, *others)}
    assert len(distinct) == TRAINING + 2000


def test_plain_shapes_have_their_formulas_roundness(some):
    """Area^2 / (2 pi * polar moment): 1 for a disc, whatever its size, place and turn."""
    reach, half = 0.94, 0.32  # of the cross: two bars that share a square
    area = 2 * (4 * reach * half) - 4 * half**2
    polar = 2 * 4 * reach * half * (reach**2 + half**2) / 3 - 4 * half**2 * 2 * half**2 / 3
    expected = (1, 3 / np.pi, 9 / (2 * np.pi * 3**0.5), area**2 / (2 * np.pi * polar))
    images, labels = some
    for number, value in enumerate(expected):
        plain = images[labels == number * len(TEXTURES)].max(axis=-1) > 140  # the ground is darker
        found = []
        for mask in plain:
            assert ndimage.label(mask, np.ones((3, 3)))[1] == 1  # in one piece
            y, x = np.nonzero(mask)
            found.append(len(x) / (2 * np.pi * (x.var() + y.var() + 1 / 6)))  # pixels are squares
        assert np.mean(found) == pytest.approx(value, rel=0.03)


def test_nothing_but_shape_and_texture_tells_the_class(some):
    """The classes' mean images, and mean colours, differ no more than chance has it."""
    images, labels = some
    means = images.mean(axis=(1, 2))  # [N, 3]
    plain = [means[labels == 4 * k] for k in range(len(SHAPES))]
    # Between plain shapes, only the lit area differs; the colours' balance does not.
    balance = [(m[:, 0] - m[:, 1:].mean(axis=1)) for m in plain]
    for one in balance:
        assert abs(one.mean()) < 4 * one.std() / len(one) ** 0.5


def test_a_linear_classifier_learns_the_texture(some):
    """From spectra, which know neither place nor colour."""
    images, labels = some
    grey = images.astype(np.float32).mean(axis=-1) / 255
    power = np.log(1e-3 + np.abs(np.fft.rfft2(grey)))
    features = ndimage.gaussian_filter(power, (0, 1, 1))[:, ::2, ::2].reshape(len(grey), -1)
    texture = labels % len(TEXTURES)
    classifier = RidgeClassifier(10.0).fit(features[:1200], texture[:1200])
    assert classifier.score(features[1200:], texture[1200:]) > 0.5  # chance: 0.25
