"""Self-Representation Alignment (arXiv 2505.02831): the method, whole.

The student sees latents at time t; the teacher, an EMA copy of it, sees the same latents under the
same noise at an earlier, cleaner time. Features of a shallow block of the student, through a small
head, are pulled toward raw features of a deeper block of the teacher:

    loss = generation_loss(student) + weight(step) * distance(head(h_student), stop_grad(h_teacher))
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from sra_jax.core.errors import InputError, expect_one_of
from sra_jax.methods.distances import DISTANCES
from sra_jax.processes import Process


@dataclass(frozen=True)
class SRAConfig:
    """Which features are aligned, and how. Blocks count from 1.

    `gap_max` bounds t - t_teacher as a fraction of the whole time; `gap` is "dynamic" (uniform up
    to the bound, as in the paper) or "fixed" (the bound itself). `head=False` aligns raw features.
    `teacher_fraction` of the batch, 1 / n of it, is aligned: all in the paper; less takes less of
    the teacher's time.

    Raises:
      InputError: a value that makes no sense; names it.
    """

    student_block: int
    teacher_block: int
    distance: str = "smooth_l1"
    gap: str = "dynamic"
    gap_max: float = 0.2
    head: bool = True
    teacher_fraction: float = 1.0

    def __post_init__(self):
        expect_one_of("distance", self.distance, DISTANCES)
        expect_one_of("gap", self.gap, ("dynamic", "fixed"))
        if not 0 <= self.gap_max <= 1:
            raise InputError(f"gap_max is {self.gap_max}, expected a fraction of time in [0, 1]")
        if not 1 <= self.student_block <= self.teacher_block:
            raise InputError(
                f"student block {self.student_block} must lie between 1 and the teacher block "
                f"{self.teacher_block}: the shallow features learn from the deep ones"
            )
        fraction = self.teacher_fraction
        if not 0 < fraction <= 1 or abs(fraction * self.stride - 1) > 0.01:
            raise InputError(f"teacher_fraction is {fraction}, expected 1, 0.5, 0.333, 0.25, ...")

    @property
    def stride(self) -> int:
        """Of so many neighbours in the batch, the first is aligned."""
        return round(1 / self.teacher_fraction)


@dataclass(frozen=True)
class WeightSchedule:
    """The alignment's weight as a function of the step.

    The paper's is constant. The released code holds it up to and including epoch `constant_epochs`,
    counted from 0, and then divides it by ten every `decade_epochs`; None never does.
    """

    weight: float
    steps_per_epoch: int = 1
    constant_epochs: int = 0
    decade_epochs: int | None = None

    def __post_init__(self):
        if self.constant_epochs < 0 or (self.decade_epochs is not None and self.decade_epochs < 1):
            raise InputError(
                f"sra.constant_epochs is {self.constant_epochs} and sra.decade_epochs "
                f"{self.decade_epochs}, expected positive numbers of epochs"
            )

    def __call__(self, step: jax.Array) -> jax.Array:
        if self.decade_epochs is None:
            return jnp.float32(self.weight)
        epochs_since = jnp.maximum(step // self.steps_per_epoch - self.constant_epochs, 0)
        return self.weight * 10.0 ** (-epochs_since.astype(jnp.float32) / self.decade_epochs)


class Model(Protocol):
    """A transformer with its parameters: x_t [B, H, W, C], t [B], labels [B] -> Output."""

    def __call__(self, x_t, t, labels, taps=(), stop_at=None): ...


class Losses(NamedTuple):
    """Losses of each example: of generation [B], and of alignment [A] of the A = B / stride that
    were aligned, with their features [A, N, D]; all but the first None without alignment."""

    generation: jax.Array
    alignment: jax.Array | None = None
    student_feature: jax.Array | None = None
    teacher_feature: jax.Array | None = None


def draw_times(
    config: SRAConfig | None, process: Process, time_key: jax.Array, gap_key: jax.Array, batch: int
) -> tuple[jax.Array, jax.Array]:
    """Times of the student [B] and of the teacher [B] (paper, sec. 3)."""
    t = process.draw_time(time_key, batch)
    if config is None:
        return t, t
    u = jnp.ones(batch) if config.gap == "fixed" else jax.random.uniform(gap_key, (batch,))
    return t, process.teacher_time(t, u, config.gap_max)


def sra_loss(
    config: SRAConfig | None,
    process: Process,
    student: Model,
    teacher: Model,
    head: Callable[[jax.Array], jax.Array],
    x: jax.Array,
    labels: jax.Array,
    noise: jax.Array,
    t: jax.Array,
    t_teacher: jax.Array,
) -> Losses:
    """Generation and alignment losses of latents `x` [B, H, W, C] (paper, sec. 3).

    `labels` [B] have already been dropped: student and teacher see the same. The teacher computes
    nothing above its block. Without a `config` no teacher runs: that is plain SiT or DiT.
    """
    student_taps = (config.student_block,) if config else ()
    out = student(process.corrupt(x, noise, t), t, labels, taps=student_taps)
    generation = process.generation_loss(out.prediction, x, noise, t)
    if config is None:
        return Losses(generation)

    block, feature = config.teacher_block, out.features[config.student_block]
    if config.stride > 1:
        aligned = (x, labels, noise, t_teacher, feature)
        x, labels, noise, t_teacher, feature = (_thin(a, config.stride) for a in aligned)
    x_teacher = process.corrupt(x, noise, t_teacher)
    target = teacher(x_teacher, t_teacher, labels, taps=(block,), stop_at=block).features[block]
    target = jax.lax.stop_gradient(target)
    projected = head(feature) if config.head else feature
    return Losses(generation, DISTANCES[config.distance](projected, target), feature, target)


def _thin(a: jax.Array, stride: int) -> jax.Array:
    """Every `stride`-th example. Reshaped first: devices that share the batch keep their own."""
    return a.reshape(-1, stride, *a.shape[1:])[:, 0]
