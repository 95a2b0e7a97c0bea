"""Conditions besides the time: dicts of arrays, each kind described by a `Conditioning`."""

from sra_jax.conditioning.base import Condition, Conditioning, drop
from sra_jax.conditioning.class_labels import ClassLabels

__all__ = ["ClassLabels", "Condition", "Conditioning", "drop"]
