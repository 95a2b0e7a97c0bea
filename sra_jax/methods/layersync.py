"""LayerSync (arXiv 2510.12581): a block learns from a deeper block of the same forward pass."""

from dataclasses import dataclass
from typing import ClassVar

import jax

from sra_jax.core.errors import InputError
from sra_jax.methods.base import Method, Terms
from sra_jax.methods.distances import cosine
from sra_jax.methods.schedule import WeightSchedule

# (weak, strong) by the trunk's size: XL and L are the paper's, S and B ours, as deep in proportion.
BLOCKS = {"S": (3, 8), "B": (3, 8), "L": (8, 18), "XL": (8, 16)}


@dataclass(frozen=True, kw_only=True)
class LayerSync(Method):
    """loss = generation - weight * mean over tokens of cos(h_weak, stop_gradient(h_strong))."""

    name: ClassVar[str] = "layersync"
    weight: WeightSchedule = WeightSchedule(0.2)
    weak_block: int
    strong_block: int

    def __post_init__(self):
        if self.weak_block >= self.strong_block:  # equal ones would give no gradient
            raise InputError(f"weak_block={self.weak_block}, expected below {self.strong_block}")

    @classmethod
    def recipe(cls, recipe, size, outputs, resolution):
        return dict(zip(("weak_block", "strong_block"), BLOCKS[size], strict=True))

    def taps(self):
        return self.weak_block, self.strong_block

    def terms(self, nets, process, example, out):
        target = jax.lax.stop_gradient(out.features[self.strong_block])
        return Terms({"layersync": cosine(out.features[self.weak_block], target) - 1})
