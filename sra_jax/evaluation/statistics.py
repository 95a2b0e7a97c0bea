"""Statistics of image sets, and the Fréchet distance between them."""

import logging
from typing import NamedTuple

import numpy as np

_log = logging.getLogger(__name__)


class Gaussian(NamedTuple):
    """Mean [D] and covariance [D, D] of features, float64."""

    mean: np.ndarray
    covariance: np.ndarray


class Summary(NamedTuple):
    """The statistics of an image set that the metrics need; None if no metric asked for one.

    `pool` and `spatial` are fitted to the 2048 and 2023 features, `points` [N, 2048] are the pool
    features and `logits` [N, 1008] the unbiased logits, float32.
    """

    pool: Gaussian | None = None
    spatial: Gaussian | None = None
    points: np.ndarray | None = None
    logits: np.ndarray | None = None


class Moments:
    """Mean and covariance of features that come in batches, in float64.

    Batches are joined by the pairwise update of Chan, Golub & LeVeque (1983). The difference of two
    sums of squares would lose digits if the mean is far from zero. Memory is that of one [D, D]
    matrix. Can be rebuilt from its three attributes, for example in another process.

    Attributes:
      count: number of features added.
      mean: their mean [D]; 0.0 before the first.
      scatter: the sum of (x - mean) (x - mean)^T, [D, D]; 0.0 before the first.
    """

    def __init__(self, count: int = 0, mean: np.ndarray = 0.0, scatter: np.ndarray = 0.0):
        self.count, self.mean, self.scatter = int(count), mean, scatter

    def add(self, features: np.ndarray) -> None:
        """Adds `features` [B, D]."""
        features = np.asarray(features, np.float64)
        mean = features.mean(axis=0)
        rows = np.vstack([features - mean, self._move(len(features), mean)])
        self.scatter += rows.T @ rows

    def merge(self, other: "Moments") -> None:
        """Adds all features that were added to `other`."""
        if other.count:
            row = self._move(other.count, other.mean)
            self.scatter += other.scatter + np.outer(row, row)

    def gaussian(self) -> Gaussian:
        """Mean and unbiased covariance of all features. There must be at least two."""
        return Gaussian(np.copy(self.mean), self.scatter / (self.count - 1))

    def _move(self, count: int, mean: np.ndarray) -> np.ndarray:
        """Updates count and mean by `count` more features of that `mean`. Returns the row [D] whose
        outer product the scatter gains because the two means differ."""
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

    It is FID for Inception's pool features (Heusel et al. 2017), and sFID for its spatial features
    (Nash et al. 2021). The trace of (A B)^(1/2) equals that of the symmetric
    (A^(1/2) B A^(1/2))^(1/2), whose eigenvalues are real even if A and B are nearly singular.
    """
    values, vectors = np.linalg.eigh(a.covariance)
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    cross = np.linalg.eigvalsh(root @ b.covariance @ root)
    trace = np.trace(a.covariance) + np.trace(b.covariance)
    difference = a.mean - b.mean
    distance = difference @ difference + trace - 2 * np.sqrt(np.clip(cross, 0, None)).sum()
    return float(max(distance, 0.0))


def warn_of_bias(metric: str, count: int, dimensions: int, published: bool = True) -> None:
    """Logs a warning if `count` images are too few for a covariance of `dimensions` features.
    If papers report the metric (`published`), the warning says how many images they use."""
    if count <= dimensions:
        compared = "50,000 to compare with papers" if published else "equally many in each set"
        _log.warning(
            "warning: %s is biased upward: %s images give a singular covariance of %s features; "
            "use more than %s, and %s",
            metric,
            *(f"{number:,}" for number in (count, dimensions, dimensions)),
            compared,
        )
