"""Distances between sets of images, from the mean and covariance of their features."""

import logging
from typing import NamedTuple

import numpy as np

_log = logging.getLogger(__name__)


class Gaussian(NamedTuple):
    """Mean [D] and covariance [D, D] of features, float64."""

    mean: np.ndarray
    covariance: np.ndarray


class Moments:
    """Mean and covariance of features that come in batches, in float64.

    Batches are joined by the pairwise update of Chan, Golub & LeVeque (1983), which loses no digits
    to a mean far from zero, as the difference of two sums of squares would. Memory is that of one
    [D, D] matrix. Made of its attributes, it is as it was, for instance in another process.

    Attributes:
      count: how many features were taken in.
      mean: of them, [D]; 0.0 before the first.
      scatter: the sum of (x - mean) (x - mean)^T, [D, D]; likewise.
    """

    def __init__(self, count: int = 0, mean: np.ndarray = 0.0, scatter: np.ndarray = 0.0):
        self.count, self.mean, self.scatter = int(count), mean, scatter

    def add(self, features: np.ndarray) -> None:
        """Takes in `features` [B, D]."""
        features = np.asarray(features, np.float64)
        mean = features.mean(axis=0)
        rows = np.vstack([features - mean, self._move(len(features), mean)])
        self.scatter += rows.T @ rows

    def merge(self, other: "Moments") -> None:
        """Takes in what `other` has taken in."""
        if other.count:
            row = self._move(other.count, other.mean)
            self.scatter += other.scatter + np.outer(row, row)

    def gaussian(self) -> Gaussian:
        """Mean and unbiased covariance of all features, of which there must be two or more."""
        return Gaussian(np.copy(self.mean), self.scatter / (self.count - 1))

    def _move(self, count: int, mean: np.ndarray) -> np.ndarray:
        """Joins the mean of `count` more; returns the row [D] that the two means' distance adds to
        the rows that the scatter is made of."""
        total, shift = self.count + count, mean - self.mean
        row = shift * np.sqrt(self.count * count / total)
        self.mean += shift * (count / total)
        self.count = total
        return row


def fit_gaussian(features: np.ndarray) -> Gaussian:
    """Mean and unbiased covariance of `features` [N, D], in float64."""
    moments = Moments()
    moments.add(features)
    return moments.gaussian()


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """Squared Fréchet (2-Wasserstein) distance of two normals (Dowson & Landau 1982):
    |mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2)).

    Of Inception's pool features it is FID (Heusel et al. 2017), of its spatial features sFID (Nash
    et al. 2021). The trace of (A B)^(1/2) is that of the symmetric (A^(1/2) B A^(1/2))^(1/2), whose
    eigenvalues are real however nearly singular A and B are.
    """
    values, vectors = np.linalg.eigh(a.covariance)
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    cross = np.linalg.eigvalsh(root @ b.covariance @ root)
    trace = np.trace(a.covariance) + np.trace(b.covariance)
    difference = a.mean - b.mean
    distance = difference @ difference + trace - 2 * np.sqrt(np.clip(cross, 0, None)).sum()
    return float(max(distance, 0.0))


def warn_of_bias(metric: str, count: int, dimensions: int, published: bool = True) -> None:
    """Logs a warning if `count` images are too few for a covariance of `dimensions` features,
    which papers compare if `published`."""
    if count <= dimensions:
        compared = "50,000 to compare with papers" if published else "equally many in each set"
        _log.warning(
            "warning: %s is biased upward: %s images give a singular covariance of %s features; "
            "use more than %s, and %s",
            metric,
            *(f"{number:,}" for number in (count, dimensions, dimensions)),
            compared,
        )
