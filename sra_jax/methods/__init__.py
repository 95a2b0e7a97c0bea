"""What is trained beside plain denoising: one file a method."""

from sra_jax.methods.sra import SRAConfig

METHODS = {"sra": SRAConfig}
