"""Distances between sets of images, from the mean and covariance of their features."""

from typing import NamedTuple

import numpy as np


class Gaussian(NamedTuple):
    """Mean [D] and covariance [D, D] of features, float64."""

    mean: np.ndarray
    covariance: np.ndarray


def fit_gaussian(features: np.ndarray) -> Gaussian:
    """Mean and unbiased covariance of `features` [N, D], in float64."""
    features = np.asarray(features, np.float64)
    return Gaussian(features.mean(axis=0), np.atleast_2d(np.cov(features, rowvar=False)))


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """Squared Fréchet (2-Wasserstein) distance of two normals (Dowson & Landau 1982):
    |mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2)).

    The trace of (A B)^(1/2) is that of the symmetric (A^(1/2) B A^(1/2))^(1/2), whose eigenvalues
    are real however nearly singular A and B are.
    """
    values, vectors = np.linalg.eigh(a.covariance)
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    cross = np.linalg.eigvalsh(root @ b.covariance @ root)
    trace = np.trace(a.covariance) + np.trace(b.covariance)
    difference = a.mean - b.mean
    distance = difference @ difference + trace - 2 * np.sqrt(np.clip(cross, 0, None)).sum()
    return float(max(distance, 0.0))
