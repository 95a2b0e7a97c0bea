"""Metrics for images so small that their pixels are features enough, such as the digits."""

from typing import NamedTuple

import numpy as np

from sra_jax.evaluation.statistics import fit_gaussian, frechet_distance


class PixelReport(NamedTuple):
    """How a set of samples compares with real images.

    `class_agreement` is the share of samples that a logistic regression, fitted to the real images,
    assigns to the class that was asked for. `frechet` is the Fréchet distance in pixel space, and
    `frechet_floor` that of one random half of the real images to the other.
    """

    class_agreement: float
    frechet: float
    frechet_floor: float


def pixel_report(
    images: np.ndarray, labels: np.ndarray, real_images: np.ndarray, real_labels: np.ndarray
) -> PixelReport:
    """Compares `images` uint8 [N, H, W, C], sampled for `labels` [N], with real ones."""
    samples, real = _features(images), _features(real_images)
    order = np.random.default_rng(0).permutation(len(real))
    first, second = np.array_split(real[order], 2)
    return PixelReport(
        class_agreement=float(np.mean(classify(real, real_labels, samples) == labels)),
        frechet=frechet_distance(fit_gaussian(samples), fit_gaussian(real)),
        frechet_floor=frechet_distance(fit_gaussian(first), fit_gaussian(second)),
    )


def classify(real: np.ndarray, real_labels: np.ndarray, samples: np.ndarray) -> np.ndarray:
    """Classes [N] of `samples` [N, D] under a logistic regression fitted to `real` [M, D]."""
    from sklearn.linear_model import LogisticRegression  # a second to import, wanted only here

    return LogisticRegression(max_iter=5000).fit(real, real_labels).predict(samples)


def _features(images: np.ndarray) -> np.ndarray:
    """[N, H, W, C] uint8 -> [N, H * W * C] in [0, 1]."""
    return images.reshape(len(images), -1) / 255.0
