"""Class labels: int32 in [0, num_classes], where `num_classes` itself is the null class.

In training `training/step.py` draws which labels are dropped, and `base.drop` replaces them.
"""

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from sra_jax.conditioning.base import Condition
from sra_jax.core.errors import InputError
from sra_jax.core.shapes import FieldSpec


@dataclass(frozen=True)
class ClassLabels:
    """The condition {"labels": int32 [B]}. `num_classes` leaves out the null class."""

    num_classes: int

    def __post_init__(self):
        if self.num_classes < 1:
            raise InputError(f"num_classes is {self.num_classes}, expected at least 1")

    def fields(self) -> dict[str, FieldSpec]:
        return {"labels": FieldSpec((), "int32")}

    def null(self, count: int) -> Condition:
        return {"labels": jnp.full(count, self.num_classes, jnp.int32)}

    def embedding(self, width: int) -> nn.Module:
        init = nn.initializers.normal(0.02)
        return LabelEmbedding(self.num_classes + 1, width, embedding_init=init, dtype=jnp.float32)


class LabelEmbedding(nn.Embed):
    """A table [num_classes + 1, width] of vectors: labels [B] -> [B, width]."""

    def __call__(self, condition: Condition) -> jax.Array:
        return super().__call__(condition["labels"])


def choose_labels(text: str, count: int, num_classes: int, seed: int) -> np.ndarray:
    """Labels int32 [count]: "random", "balanced" (0, 1, 2 and so on), or a list "3,1,4" repeated.

    Raises:
      InputError: something else, or a label out of range.
    """
    if text == "random":
        return np.random.default_rng(seed).integers(num_classes, size=count, dtype=np.int32)
    if text == "balanced":
        return np.arange(count, dtype=np.int32) % num_classes
    return np.resize(_parse_labels(text, num_classes), count)


def _parse_labels(text: str, num_classes: int) -> np.ndarray:
    try:
        labels = [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(
            f"labels is {text!r}, expected random, balanced or a list like 3,1,4"
        ) from None
    for label in labels:
        if not 0 <= label < num_classes:
            raise InputError(f"label {label} is out of range, expected 0 to {num_classes - 1}")
    return np.array(labels, np.int32)
