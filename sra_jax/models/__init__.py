"""Diffusion transformers that return their intermediate activations."""

from sra_jax.models.dit import DiffusionTransformer, Output, TransformerConfig, init_params
from sra_jax.models.sizes import SIZES, name_variant, parse_variant

__all__ = [
    "SIZES",
    "DiffusionTransformer",
    "Output",
    "TransformerConfig",
    "init_params",
    "name_variant",
    "parse_variant",
]
