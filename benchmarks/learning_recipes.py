"""Recipes and sizes of benchmarks/learning.py: what is trained and how it is measured.

The recipes equal configs/digits.py and configs/shapes.py (a test compares them). They are written
out here because the configs need ml_collections, and the core does without it.
"""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sra_jax.conditioning import ClassLabels
from sra_jax.methods import SRA
from sra_jax.methods.schedule import WeightSchedule
from sra_jax.models import DiT, DiTConfig, LatentLayout
from sra_jax.processes import Interpolant
from sra_jax.training.objective import Objective
from sra_jax.training.optimizer import OptimizerConfig
from sra_jax.training.step import StepConfig

WEIGHT = 0.2  # of the alignment, in the paper


@dataclass(frozen=True)
class Recipe:
    """Model, method and optimiser of a run, without its seed. `sra` is None for plain SiT."""

    transformer: DiTConfig
    process: Interpolant
    sra: SRA | None
    optimizer: OptimizerConfig
    step: StepConfig
    batch_size: int

    def objective(self) -> Objective:
        """What is trained."""
        methods = () if self.sra is None else (self.sra,)
        trunk = DiT(self.transformer)
        return Objective(trunk, self.process, self.transformer.conditioning, methods)


DIGITS = Recipe(
    DiTConfig(
        LatentLayout(8, 8, 1, patch=2),
        ClassLabels(10),
        outputs=1,
        width=64,
        depth=4,
        num_heads=4,
    ),
    Interpolant(),
    SRA(
        student_block=1,
        teacher_block=3,
        weight=WeightSchedule(WEIGHT, steps_per_epoch=1797 // 64),
    ),
    OptimizerConfig(learning_rate=2e-3),
    StepConfig(ema_decay=0.995),
    batch_size=64,
)
SHAPES = Recipe(
    DiTConfig(
        LatentLayout(32, 32, 3, patch=4),
        ClassLabels(16),
        outputs=1,
        width=64,
        depth=6,
        num_heads=4,
    ),
    Interpolant(),
    SRA(
        student_block=2,
        teacher_block=4,
        weight=WeightSchedule(WEIGHT, steps_per_epoch=20_000 // 32),
    ),
    OptimizerConfig(learning_rate=1e-3),
    StepConfig(ema_decay=0.995),
    batch_size=32,
)


def align(recipe: Recipe, **changes: Any) -> Recipe:
    """The recipe with other fields of its SRA."""
    return dataclasses.replace(recipe, sra=dataclasses.replace(recipe.sra, **changes))


def weigh(recipe: Recipe, weight: float) -> Recipe:
    """The recipe with another constant weight of the alignment. Zero removes the alignment."""
    if not weight:
        return dataclasses.replace(recipe, sra=None)
    return align(recipe, weight=dataclasses.replace(recipe.sra.weight, weight=weight))


def decay(recipe: Recipe, steps: int) -> Recipe:
    """The recipe with the released code's decaying weight, its 800 epochs scaled to `steps`.

    The weight is constant for 150 epochs and then falls to a tenth every 1000.
    """
    epoch = steps / 800
    schedule = WeightSchedule(WEIGHT, 1, round(150 * epoch), round(1000 * epoch))
    return align(recipe, weight=schedule)


# Each variant is a function of the recipe and of the number of steps of a run.
VARIANTS: dict[str, Callable[[Recipe, int], Recipe]] = {
    "sit": lambda recipe, steps: weigh(recipe, 0.0),
    "paper": lambda recipe, steps: recipe,
    "same_block": lambda recipe, steps: align(recipe, teacher_block=recipe.sra.student_block),
    "no_gap": lambda recipe, steps: align(recipe, gap_max=0.0),
    "no_head": lambda recipe, steps: align(recipe, head=False),
    "weight_0.1": lambda recipe, steps: weigh(recipe, 0.1),
    "weight_0.3": lambda recipe, steps: weigh(recipe, 0.3),
    "weight_0.4": lambda recipe, steps: weigh(recipe, 0.4),
    "fraction_0.5": lambda recipe, steps: align(recipe, teacher_fraction=0.5),
    "decay": decay,
}


@dataclass(frozen=True)
class Setting:
    """Sizes of the runs on one data set, "digits" or "shapes".

    Attributes:
      steps: number of train steps; plain SiT makes more (see learning.py).
      every: steps between two measurements of `samples` images, each drawn in `solver_steps`.
      training, reference: images of the train set and of the Fréchet distance's reference; the
        digits are always all 1,797.
      fitted, tested: images that the linear probes are fitted to and tested on.
      classifier_steps: train steps of the classifier that measures.
      timed: rounds in which steps with and without alignment are timed.
    """

    name: str
    data: str
    recipe: Recipe
    steps: int
    every: int
    variants: tuple[str, ...] = tuple(VARIANTS)
    training: int = 20_000
    reference: int = 5000
    samples: int = 1000
    solver_steps: int = 16
    fitted: int = 1200
    tested: int = 597
    classifier_steps: int = 1000
    timed: int = 8

    def dispatched(self, most: int) -> int:
        """Steps of one dispatch: the largest divisor, up to `most`, of both intervals."""
        common = math.gcd(self.steps, self.every)
        return max(n for n in range(1, min(most, common) + 1) if common % n == 0)


LONG_SHAPES = Setting(
    name="shapes_long",
    data="shapes",
    recipe=SHAPES,
    steps=6000,
    every=1000,
    variants=("sit", "paper"),
    samples=500,
    fitted=4000,
    tested=1000,
    classifier_steps=3000,
)
# --tiny: a few steps of a small model on few images.
TINY = Setting(
    name="tiny",
    data="shapes",
    recipe=dataclasses.replace(
        align(SHAPES, student_block=1, teacher_block=2),
        transformer=dataclasses.replace(
            SHAPES.transformer,
            layout=dataclasses.replace(SHAPES.transformer.layout, patch=8),
            width=8,
            depth=3,
            num_heads=2,
        ),
        batch_size=8,
    ),
    steps=4,
    every=2,
    variants=("sit", "paper"),
    training=200,
    reference=200,
    samples=80,
    solver_steps=2,
    fitted=100,
    tested=50,
    classifier_steps=10,
    timed=2,
)
SETTINGS = {
    setting.name: setting
    for setting in (
        Setting("digits", "digits", DIGITS, steps=1000, every=250),
        dataclasses.replace(
            LONG_SHAPES, name="shapes", steps=2000, every=500, variants=tuple(VARIANTS)
        ),
        LONG_SHAPES,
    )
}


def make_recipe(setting: Setting, variant: str, platform: str = "cpu") -> Recipe:
    """The recipe of `variant` in `setting`, computing in the dtype that suits `platform`."""
    recipe = VARIANTS[variant](setting.recipe, setting.steps)
    dtype = "float32" if platform == "cpu" else "bfloat16"
    transformer = dataclasses.replace(recipe.transformer, dtype=dtype)
    return dataclasses.replace(recipe, transformer=transformer)
