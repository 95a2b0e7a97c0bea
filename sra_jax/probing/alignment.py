"""The effective rank of features, and the alignment of the student's with the teacher's."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sra_jax.methods import SRA, Example, Networks
from sra_jax.models import Pass
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
    method: SRA,
    student: Any,
    teacher: Any,
    head: Any,
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
      student, teacher: parameters of the trunk.
      head: the method's own parameters.
      moments, numbers: the images, [N, H, W, 2 C], and their numbers in the data set, [N].
      time: in [0, 1].
    """
    t = extractor.process.model_time(time)
    cosines = []
    for start in range(0, len(numbers), BATCH):
        rows = slice(start, start + BATCH)
        cosines.append(
            _cosines(extractor, method, student, teacher, head, moments[rows], numbers[rows], t)
        )
    return float(np.concatenate(cosines).mean())


@partial(jax.jit, static_argnames=("extractor", "method"))
def _cosines(extractor, method, student, teacher, head, moments, numbers, t):
    """Returns the mean cosine over patches for each image, [B]."""
    process = extractor.process
    method = dataclasses.replace(method, distance="cosine", teacher_fraction=1.0)
    x, noise = extractor.inputs(moments, numbers)
    times = jnp.full(len(x), t)
    u = jnp.full(len(x), 1.0 if method.gap == "fixed" else 0.5)  # the mean of training's draws
    draws = {method.name: {"t_teacher": process.earlier(times, u, method.gap_max)}}
    example = Example(x, extractor.conditioning.null(len(x)), noise, times, {}, draws)
    networks = [partial(extractor.trunk.apply, params) for params in (student, teacher)]
    x_t, block = process.corrupt(x, noise, times), method.student_block
    out = networks[0](x_t, times, example.condition, Pass(taps=(block,), stop_at=block))
    terms = method.terms(Networks(*networks, head, ()), process, example, out)
    return 1 - terms.losses["alignment"]
