"""Trunks: diffusion transformers that return their intermediate activations."""

from sra_jax.models.base import WHOLE, Output, Params, Pass, Sizes, Trunk
from sra_jax.models.dit import DiT, DiTConfig
from sra_jax.models.layout import LatentLayout
from sra_jax.models.sizes import SIZES, name_variant, parse_variant

__all__ = [
    "SIZES",
    "WHOLE",
    "DiT",
    "DiTConfig",
    "LatentLayout",
    "Output",
    "Params",
    "Pass",
    "Sizes",
    "Trunk",
    "name_variant",
    "parse_variant",
]
