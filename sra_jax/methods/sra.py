"""Self-Representation Alignment (arXiv 2505.02831): the paper's method, whole.

The student sees latents at time t. The teacher, its EMA, sees the same latents under the same noise
at an earlier, cleaner time. Features of a shallow block of the student, through a small head, are
pulled toward the raw features of a deeper block of the teacher:

    loss = generation + weight(step) * distance(head(h_student), stop_gradient(h_teacher))
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from sra_jax.core.errors import InputError, expect_one_of
from sra_jax.distributed.sharding import Rules
from sra_jax.methods.base import Example, Keys, Method, Networks, Terms
from sra_jax.methods.distances import DISTANCES
from sra_jax.methods.schedule import WeightSchedule
from sra_jax.models import Output, Params, Pass, Sizes
from sra_jax.models.layers import MLP
from sra_jax.processes import Process

# (student, teacher) blocks by the trunk's size, for SiT (1 output) and DiT (2). The S pairs are
# this project's own (the B pairs, at the same depth); the others are the paper's.
BLOCKS = {
    1: {"S": (3, 8), "B": (3, 8), "L": (6, 16), "XL": (8, 20)},
    2: {"S": (3, 7), "B": (3, 7), "L": (6, 14), "XL": (8, 16)},
}
# The released code's schedule, by resolution: its last epoch of constant weight, counted from 0,
# and in how many epochs after it the weight falls to a tenth; and its weight, for SiT and DiT.
RELEASE_EPOCHS = {256: (149, 1000), 512: (99, 800)}
RELEASE_WEIGHT = {1: 0.2, 2: 0.04}


@dataclass(frozen=True, kw_only=True)
class SRA(Method):
    """Self-Representation Alignment. Blocks count from 1.

    Attributes:
      student_block, teacher_block: the blocks whose features are aligned.
      distance: a name in `methods.distances`.
      gap: "dynamic" (t - t_teacher is uniform up to `gap_max`, as in the paper) or "fixed" (it is
        `gap_max`).
      gap_max: the largest gap, as a fraction of the whole time.
      head: False aligns raw features.
      teacher_fraction: the fraction of the batch that is aligned, 1 / n; less than 1 saves the
        teacher's time.

    Raises:
      InputError: a value that makes no sense; names it.
    """

    name: ClassVar[str] = "sra"
    recipes: ClassVar[tuple[str, ...]] = ("paper", "release", "cosine")
    rules: ClassVar[Rules] = (
        (r"sra/fc1/kernel", PartitionSpec("fsdp", "tensor")),
        (r"sra/fc1/bias", PartitionSpec("tensor")),
        (r"sra/fc2/kernel", PartitionSpec("tensor", "fsdp")),
    )
    torch_names: ClassVar[Mapping[str, str]] = {"ap_head.linear1": "fc1", "ap_head.linear2": "fc2"}

    weight: WeightSchedule = WeightSchedule(0.2)
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
        if not 0 < fraction <= 1 or abs(fraction * self.group - 1) > 0.01:
            raise InputError(f"teacher_fraction is {fraction}, expected 1, 0.5, 0.333, 0.25, ...")

    @property
    def group(self) -> int:
        """Only the first example of every `group` neighbours is aligned."""
        return round(1 / self.teacher_fraction)

    @classmethod
    def recipe(cls, recipe: str, size: str, outputs: int, resolution: int) -> dict[str, Any]:
        student, teacher = BLOCKS[outputs][size]
        fields = {"student_block": student, "teacher_block": teacher}
        if recipe == "release":
            constant, decade = RELEASE_EPOCHS[resolution]
            weight = RELEASE_WEIGHT[outputs]
            fields |= {"weight": weight, "constant_epochs": constant, "decade_epochs": decade}
        if recipe == "cosine":
            fields |= {"weight": 0.5, "distance": "cosine"}
        return fields

    def check(self, sizes: Sizes) -> None:
        if self.teacher_block > sizes.depth:
            raise InputError(
                f"method.sra.teacher_block is {self.teacher_block}, but the model has "
                f"{sizes.depth} blocks"
            )

    def taps(self) -> tuple[int, ...]:
        return (self.student_block,)

    def init(self, key: jax.Array, sizes: Sizes) -> Params:
        if not self.head:
            return {}
        return _head(sizes.width, sizes.dtype).init(key, jnp.zeros((1, sizes.width)))["params"]

    def draw(
        self, keys: Keys, process: Process, t: jax.Array, sizes: Sizes
    ) -> dict[str, jax.Array]:
        """The teacher's times [B] (paper, sec. 3)."""
        u = jnp.ones(len(t)) if self.gap == "fixed" else jax.random.uniform(keys("gap"), t.shape)
        return {"t_teacher": process.earlier(t, u, self.gap_max)}

    def terms(self, nets: Networks, process: Process, example: Example, out: Output) -> Terms:
        """The alignment loss [B / group]. The teacher computes nothing above its block."""
        feature, t = out.features[self.student_block], example.draws[self.name]["t_teacher"]
        x, condition, noise = example.x, example.condition, example.noise
        if self.group > 1:
            inputs = (x, condition, noise, t, feature)
            x, condition, noise, t, feature = jax.tree.map(self._first_of_group, inputs)
        how = Pass(taps=(self.teacher_block,), stop_at=self.teacher_block)
        teacher = nets.teacher(process.corrupt(x, noise, t), t, condition, how)
        target = jax.lax.stop_gradient(teacher.features[self.teacher_block])
        projected = feature
        if self.head:
            head = _head(feature.shape[-1], feature.dtype)
            projected = head.apply({"params": nets.params}, feature)
        return Terms(
            losses={"alignment": DISTANCES[self.distance](projected, target)},
            metrics={
                "student_feature_norm": _mean_norm(feature),
                "teacher_feature_norm": _mean_norm(target),
            },
        )

    def _first_of_group(self, a: jax.Array) -> jax.Array:
        # The reshape keeps every example on its device, so this needs no communication.
        return a.reshape(-1, self.group, *a.shape[1:])[:, 0]


def _head(width: int, dtype: jnp.dtype) -> MLP:
    """The projection head: Linear(D -> 2 D), SiLU, Linear(2 D -> D)."""
    return MLP(2 * width, width, "silu", dtype)


def _mean_norm(feature: jax.Array) -> jax.Array:
    """Mean over tokens of the L2 norm of a feature [B, N, D]."""
    return jnp.linalg.norm(feature.astype(jnp.float32), axis=-1).mean()
