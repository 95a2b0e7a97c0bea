"""Tiny models, and data for them."""

import dataclasses
from typing import Any

import numpy as np

from sra_jax.conditioning import ClassLabels
from sra_jax.data.spec import LatentSpec
from sra_jax.methods import SRA, Method
from sra_jax.models import DiT, DiTConfig, LatentLayout
from sra_jax.processes import DDPM, Interpolant
from sra_jax.training.objective import Objective

OUTPUTS = {"sit": 1, "dit": 2}  # of a latent channel, by the name of the model
TINY = DiTConfig(
    LatentLayout(8, 8, 2, patch=4), ClassLabels(10), outputs=1, width=16, depth=3, num_heads=2
)
SMALL = DiTConfig(
    LatentLayout(8, 8, 4, patch=2), ClassLabels(10), outputs=1, width=32, depth=3, num_heads=4
)
METHOD = SRA(student_block=1, teacher_block=2)


def vary(config: DiTConfig, **changes: Any) -> DiTConfig:
    """`config` with other fields.

    Beside its own fields: `side` (height and width of the latents), `patch`, `channels` and
    `num_classes`; and `kind`, "sit" or "dit", for its outputs.
    """
    layout = {name: changes.pop(name) for name in ("patch", "channels") if name in changes}
    if "side" in changes:
        layout["height"] = layout["width"] = changes.pop("side")
    if "num_classes" in changes:
        changes["conditioning"] = ClassLabels(changes.pop("num_classes"))
    if "kind" in changes:
        changes["outputs"] = OUTPUTS[changes.pop("kind")]
    layout = dataclasses.replace(config.layout, **layout)
    return dataclasses.replace(config, **({"layout": layout} | changes))


def random_inputs(config, seed, batch=3):
    """Latents, times and labels; the last label is the null class."""
    rng, classes = np.random.default_rng(seed), config.conditioning.num_classes
    x = rng.normal(size=(batch, *config.layout.shape))
    t = rng.uniform(size=batch) if config.outputs == 1 else rng.integers(0, 1000, batch)
    labels = np.append(rng.integers(0, classes, batch - 1), classes)
    dtype = np.float32 if config.outputs == 1 else np.int32
    return x.astype(np.float32), t.astype(dtype), labels.astype(np.int32)


def make_objective(config: DiTConfig = TINY, method: Method | None = METHOD) -> Objective:
    """SiT or DiT, with one method or none."""
    process = {1: Interpolant(), 2: DDPM()}[config.outputs]
    methods = () if method is None else (method,)
    return Objective(DiT(config), process, config.conditioning, methods)


def hurry_classifier(patch, steps):
    """Has classifiers learn for so many steps alone; `patch` is a pytest.MonkeyPatch."""
    patch.setattr("sra_jax.evaluation.classifier.STEPS", steps)
    patch.setattr("sra_jax.evaluation.classifier.EPOCHS", 0)


def make_batch(size=8, config=TINY, std=0.5):
    """A global batch: moments with one standard deviation, and labels."""
    rng = np.random.default_rng(0)
    shape = (size, *config.layout.shape)
    moments = np.concatenate([rng.normal(size=shape), np.full(shape, std)], -1)
    labels = rng.integers(0, config.conditioning.num_classes, size)
    return {"moments": moments.astype(np.float32), "labels": labels.astype(np.int32)}


def pixel_spec(side, num_classes, channels=1, **others):
    """Of images that are their own latents, [side, side, channels]."""
    shape = (side, side, channels)
    return LatentSpec("pixels", 1.0, 0.0, shape, side, channels, num_classes, **others)
