"""Diffusion transformers that learn better representations while they learn to generate.

`load_model(WORKDIR)` opens a trained run; `METHODS` are what can be trained beside plain denoising,
by name. Both are imported when first used, so that `import sra_jax` stays cheap.
"""

from typing import Any

__version__ = "0.2.0.dev0"
__all__ = ["METHODS", "load_model"]


def __getattr__(name: str) -> Any:
    if name == "load_model":
        from sra_jax.run.directory import load_model

        return load_model
    if name == "METHODS":
        from sra_jax.methods import METHODS

        return METHODS
    raise AttributeError(f"module 'sra_jax' has no attribute {name!r}")
