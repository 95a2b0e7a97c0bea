"""Methods: what is trained beside plain denoising, by name."""

from sra_jax.methods.base import Example, Method, Networks, Terms
from sra_jax.methods.layersync import LayerSync
from sra_jax.methods.sra import SRA

METHODS: dict[str, type[Method]] = {
    "layersync": LayerSync,
    "sra": SRA,
}

__all__ = ["METHODS", "SRA", "Example", "Method", "Networks", "Terms"]
