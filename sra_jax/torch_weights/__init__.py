"""Parameters from and to PyTorch."""

from sra_jax.torch_weights.layout import from_torch, to_torch

__all__ = ["from_torch", "to_torch"]
