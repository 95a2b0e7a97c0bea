"""The interface of a conditioning: its record fields, its null value, how a trunk embeds it."""

from collections.abc import Mapping
from typing import Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp

from sra_jax.core.shapes import FieldSpec, broadcast_right

Condition = Mapping[str, jax.Array]
"""Arrays [B, ...] by name. Everything the model is told besides the latents and the time."""


class Conditioning(Protocol):
    """One kind of condition."""

    def fields(self) -> dict[str, FieldSpec]:
        """The record fields that make up the condition."""

    def null(self, count: int) -> Condition:
        """The condition of `count` examples that says nothing."""

    def embedding(self, width: int) -> nn.Module:
        """The module from a condition to vectors [B, width], which a trunk adds to the time's."""


def drop(conditioning: Conditioning, condition: Condition, dropped: jax.Array) -> Condition:
    """Replaces the condition of the examples that are `dropped` (bool [B]) by the null value."""
    null = conditioning.null(len(dropped))
    return {
        name: jnp.where(broadcast_right(dropped, values.ndim), null[name], values)
        for name, values in condition.items()
    }
