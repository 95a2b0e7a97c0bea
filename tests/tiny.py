"""Tiny models, and data for them."""

import numpy as np

from sra_jax.data.spec import LatentSpec
from sra_jax.methods.sra import SRAConfig, WeightSchedule
from sra_jax.models import DiffusionTransformer, TransformerConfig
from sra_jax.processes import DDPM, Interpolant
from sra_jax.training.step import Objective

TINY = TransformerConfig(
    kind="sit",
    input_size=8,
    patch_size=4,
    in_channels=2,
    width=16,
    depth=3,
    num_heads=2,
    num_classes=10,
)
SMALL = TransformerConfig(
    kind="sit",
    input_size=8,
    patch_size=2,
    in_channels=4,
    width=32,
    depth=3,
    num_heads=4,
    num_classes=10,
)
METHOD = SRAConfig(student_block=1, teacher_block=2)


def random_inputs(config, seed, batch=3):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(batch, config.input_size, config.input_size, config.in_channels))
    t = rng.uniform(size=batch) if config.kind == "sit" else rng.integers(0, 1000, batch)
    labels = np.append(rng.integers(0, config.num_classes, batch - 1), config.num_classes)
    dtype = np.float32 if config.kind == "sit" else np.int32
    return x.astype(np.float32), t.astype(dtype), labels.astype(np.int32)


def make_objective(config=TINY, method=METHOD, weight=0.2):
    process = {"sit": Interpolant(), "dit": DDPM()}[config.kind]
    return Objective(DiffusionTransformer(config), process, method, WeightSchedule(weight))


def hurry_classifier(patch, steps):
    """Has classifiers learn for so many steps alone; `patch` is a pytest.MonkeyPatch."""
    patch.setattr("sra_jax.evaluation.classifier.STEPS", steps)
    patch.setattr("sra_jax.evaluation.classifier.EPOCHS", 0)


def make_batch(size=8, config=TINY, std=0.5):
    rng = np.random.default_rng(0)
    shape = (size, config.input_size, config.input_size, config.in_channels)
    moments = np.concatenate([rng.normal(size=shape), np.full(shape, std)], -1)
    labels = rng.integers(0, config.num_classes, size)
    return {"moments": moments.astype(np.float32), "labels": labels.astype(np.int32)}


def pixel_spec(side, num_classes, channels=1, **others):
    """Of images that are their own latents, [side, side, channels]."""
    shape = (side, side, channels)
    return LatentSpec("pixels", 1.0, 0.0, shape, side, channels, num_classes, **others)
