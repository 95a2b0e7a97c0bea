"""Trunks: diffusion transformers that return their intermediate activations."""

from sra_jax.models.base import WHOLE, Groups, Output, Params, Pass, Route, Sizes, Trunk
from sra_jax.models.dit import DiT, DiTConfig
from sra_jax.models.layout import LatentLayout
from sra_jax.models.sizes import SIZES, name_variant, parse_variant

__all__ = [
    "SIZES",
    "WHOLE",
    "DiT",
    "DiTConfig",
    "Groups",
    "LatentLayout",
    "Output",
    "Params",
    "Pass",
    "Route",
    "Sizes",
    "Trunk",
    "name_variant",
    "parse_variant",
]
