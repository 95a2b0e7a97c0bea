"""Simple spectra of features: into how many directions they spread, how student and teacher agree.

The features' norms, which grow as training goes on, come with the features themselves.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sra_jax.methods.sra import SRAConfig, sra_loss
from sra_jax.probing.features import Lens

AT_ONCE = 64  # images


def effective_rank(features: np.ndarray) -> float:
    """Into how many directions the rows of [N, D] spread, from 1 to D; 0 if they are all alike.

    The exponential of the entropy of the centred features' normalised singular values (Roy &
    Vetterli 2007, "The effective rank").
    """
    centred = np.asarray(features, np.float64)
    centred -= centred.mean(axis=0)
    squares = np.linalg.eigvalsh(centred.T @ centred)  # far quicker than the values themselves
    values = np.sqrt(np.maximum(squares, 0))
    if not values.max(initial=0) > 0:
        return 0.0
    shares = values[values > 0] / values.sum()
    return float(np.exp(-np.sum(shares * np.log(shares))))


def alignment(
    lens: Lens,
    method: SRAConfig,
    student: Any,
    teacher: Any,
    moments: np.ndarray,
    numbers: np.ndarray,
    time: float,
) -> float:
    """Mean cosine of what the method pulls together, over images and their patches.

    On one side the projected features of the student's block at `time` in [0, 1], by the parameters
    `student`; on the other those of the teacher's block at the teacher's mean time, by `teacher`.
    `moments` [N, H, W, 2 C] and `numbers` [N] are the images.
    """
    t = lens.process.model_time(time)
    parts = [slice(start, start + AT_ONCE) for start in range(0, len(numbers), AT_ONCE)]
    cosines = [
        _cosines(lens, method, student, teacher, moments[part], numbers[part], t) for part in parts
    ]
    return float(np.concatenate(cosines).mean())


@partial(jax.jit, static_argnames=("lens", "method"))
def _cosines(lens, method, student, teacher, moments, numbers, t):
    """Of each image: [B]."""
    x, noise = lens.show(moments, numbers)
    times = jnp.full(len(x), t)
    u = jnp.full(len(x), 1.0 if method.gap == "fixed" else 0.5)  # the mean of what training draws
    apply = lens.model.apply
    losses = sra_loss(
        dataclasses.replace(method, distance="cosine"),
        lens.process,
        partial(apply, {"params": student}),
        partial(apply, {"params": teacher}),
        partial(apply, {"params": student}, method="project"),
        x,
        lens.null_labels(len(x)),
        noise,
        times,
        lens.process.teacher_time(times, u, method.gap_max),
    )
    return 1 - losses.alignment
