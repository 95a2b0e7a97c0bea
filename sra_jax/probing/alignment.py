"""The effective rank of features, and the alignment of the student's with the teacher's."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sra_jax.methods.sra import SRAConfig, sra_loss
from sra_jax.probing.features import FeatureExtractor

BATCH = 64  # images


def effective_rank(features: np.ndarray) -> float:
    """Computes the effective rank of rows [N, D], from 1 to D; 0 if all rows are equal.

    It is the exponential of the entropy of the centred features' normalised singular values (Roy &
    Vetterli 2007, "The effective rank").
    """
    centred = np.asarray(features, np.float64)
    centred -= centred.mean(axis=0)
    squares = np.linalg.eigvalsh(centred.T @ centred)  # much faster than an SVD
    values = np.sqrt(np.maximum(squares, 0))
    if not values.max(initial=0) > 0:
        return 0.0
    shares = values[values > 0] / values.sum()
    return float(np.exp(-np.sum(shares * np.log(shares))))


def alignment(
    extractor: FeatureExtractor,
    method: SRAConfig,
    student: Any,
    teacher: Any,
    moments: np.ndarray,
    numbers: np.ndarray,
    time: float,
) -> float:
    """Computes the mean cosine of the two features that the method aligns.

    They are the projected features of the student's block at `time`, and the features of the
    teacher's block at the mean of the teacher's times.

    Args:
      extractor: makes the models' inputs.
      method: has the two blocks and the gap between their times.
      student, teacher: parameters.
      moments, numbers: the images, [N, H, W, 2 C], and their numbers in the data set, [N].
      time: in [0, 1].
    """
    t = extractor.process.model_time(time)
    cosines = []
    for start in range(0, len(numbers), BATCH):
        rows = slice(start, start + BATCH)
        cosines.append(
            _cosines(extractor, method, student, teacher, moments[rows], numbers[rows], t)
        )
    return float(np.concatenate(cosines).mean())


@partial(jax.jit, static_argnames=("extractor", "method"))
def _cosines(extractor, method, student, teacher, moments, numbers, t):
    """Returns the mean cosine over patches for each image, [B]."""
    x, noise = extractor.inputs(moments, numbers)
    times = jnp.full(len(x), t)
    u = jnp.full(len(x), 1.0 if method.gap == "fixed" else 0.5)  # the mean of training's draws
    apply = extractor.model.apply
    losses = sra_loss(
        dataclasses.replace(method, distance="cosine"),
        extractor.process,
        partial(apply, {"params": student}),
        partial(apply, {"params": teacher}),
        partial(apply, {"params": student}, method="project"),
        x,
        extractor.null_labels(len(x)),
        noise,
        times,
        extractor.process.teacher_time(times, u, method.gap_max),
    )
    return 1 - losses.alignment
