"""Simple spectra of features: into how many directions they spread, and how student and teacher agree.

The features' norms, which grow as training goes on, come with the features themselves.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sra_jax.evaluation.features import Lens
from sra_jax.sra import SRAConfig, sra_loss


def effective_rank(features: np.ndarray) -> float:
    """Into how many directions the rows of [N, D] spread, from 1 to D; 0 if they are all alike.

    The exponential of the entropy of the centred features' normalised singular values (Roy &
    Vetterli 2007, "The effective rank").
    """
    centred = np.asarray(features, np.float64)
    values = np.linalg.svd(centred - centred.mean(axis=0), compute_uv=False)
    if not values.max(initial=0) > 0:
        return 0.0
    shares = values[values > 0] / values.sum()
    return float(np.exp(-np.sum(shares * np.log(shares))))


def mean_gap(method: SRAConfig) -> float:
    """The mean of u: between no gap (0) and the largest (1), which a fixed gap always is."""
    return 1.0 if method.gap == "fixed" else 0.5


@partial(jax.jit, static_argnames=("lens", "method"))
def alignment_cosine(
    lens: Lens,
    method: SRAConfig,
    student: Any,
    teacher: Any,
    moments: jax.Array,
    numbers: jax.Array,
    t: jax.Array,
) -> jax.Array:
    """Cosine, averaged over patches, of what the method pulls together, for each image: [B].

    On one side the projected features of the student's block at the process's time `t` [], by the
    parameters `student`; on the other those of the teacher's block at the teacher's mean time, by
    `teacher`. `moments` [B, H, W, 2 C] and `numbers` [B] are the images.
    """
    x, noise = lens.show(moments, numbers)
    times = jnp.full(len(x), t)
    model = lens.model
    losses = sra_loss(
        dataclasses.replace(method, distance="cosine"),
        lens.process,
        partial(model.apply, {"params": student}),
        partial(model.apply, {"params": teacher}),
        partial(model.apply, {"params": student}, method="project"),
        x,
        lens.null_labels(len(x)),
        noise,
        times,
        lens.process.teacher_time(times, jnp.full(len(x), mean_gap(method)), method.gap_max),
    )
    return 1 - losses.alignment
