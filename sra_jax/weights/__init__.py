"""Parameters from and to PyTorch."""

from sra_jax.weights.torch_layout import from_torch, to_torch

__all__ = ["from_torch", "to_torch"]
