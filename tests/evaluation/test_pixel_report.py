"""The digits' metrics tell real digits from wrong ones."""

import numpy as np
import pytest

from sra_jax.data.embedded import load_digits
from sra_jax.evaluation.pixels import classify, pixel_report

SOME = 500  # digits, where not all of them are needed


@pytest.fixture(scope="module")
def halves():
    """Two halves of the digits, as (images, labels)."""
    images, labels = load_digits()
    order = np.random.default_rng(1).permutation(len(images))
    return [(images[half], labels[half]) for half in np.array_split(order, 2)]


def test_real_digits_pass(halves):
    images, labels = load_digits()
    report = pixel_report(*halves[0], images, labels)
    assert report.class_agreement > 0.97
    assert 0 < report.frechet_floor < 1
    assert report.frechet < report.frechet_floor


def test_unseen_digits_are_recognised(halves):
    (real, real_labels), (unseen, labels) = halves
    report = pixel_report(unseen, labels, real, real_labels)
    assert 0.93 < report.class_agreement < 1


def test_labels_that_mean_nothing_score_a_tenth():
    images, labels = (array[:SOME] for array in load_digits())
    shuffled = np.random.default_rng(0).permutation(labels)
    report = pixel_report(images, shuffled, images, labels)
    # As many independent trials at a chance of 0.1: within four standard deviations.
    assert abs(report.class_agreement - 0.1) < 4 * np.sqrt(0.1 * 0.9 / len(labels))
    assert report.frechet == pytest.approx(0, abs=1e-6)  # the images are the real ones


def test_noise_and_sameness_are_far():
    images, labels = (array[:SOME] for array in load_digits())
    noise = np.random.default_rng(0).integers(0, 256, images.shape, np.uint8)
    one = np.broadcast_to(images[:1], images.shape)
    reports = [pixel_report(wrong, labels, images, labels) for wrong in (noise, one)]
    for report in reports:
        assert report.frechet > 10 * report.frechet_floor
        assert report.class_agreement < 0.2
    # A picture that never changes: its distance is the spread of the others and that of the means.
    real = images.reshape(len(images), -1) / 255
    expected = np.sum((real.mean(axis=0) - real[0]) ** 2) + real.var(axis=0, ddof=1).sum()
    assert reports[1].frechet == pytest.approx(expected, rel=1e-6)


def test_classify_answers_for_each_sample():
    rng = np.random.default_rng(0)
    centres = np.array([[0.0, 0.0], [5.0, 0.0], [0.0, 5.0]])
    labels = rng.integers(3, size=300)
    real = centres[labels] + rng.normal(size=(300, 2))
    np.testing.assert_array_equal(classify(real, labels, centres[[2, 0, 1]]), [2, 0, 1])
