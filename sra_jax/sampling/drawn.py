"""A model's images as a set to measure."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from sra_jax.core.errors import InputError
from sra_jax.data.images import in_colour
from sra_jax.sampling.images import MAX_DRAWN, Drawing


class DrawnImages:
    """Images drawn as they are asked for; see `ImageSet`."""

    def __init__(
        self,
        name: str,
        drawing: Drawing,
        params: Any,
        side: int,
        check: Callable[[], None] = lambda: None,
    ):
        """Draws with `params`, whole on each device of this process, images of `side` pixels.

        `check` is called after every chunk; what it raises ends the drawing.
        """
        self.name, self.count, self.resolution = name, len(drawing.labels), (side, side)
        self._drawing, self._params, self._check = drawing, params, check

    def chunks(self, first: int, last: int) -> Iterator[np.ndarray]:
        """See `ImageSet`; `first` begins a chunk."""
        size = self._drawing.chunk
        wanted = range(first // size, math.ceil(last / size))
        for _, images in self._drawing.images(self._params, wanted, jax.local_devices()):
            self._check()
            yield in_colour(images)


def check_count(count: int) -> None:
    """Raises InputError unless `count` images can be drawn and measured."""
    if not 2 <= count <= MAX_DRAWN:
        raise InputError(f"num is {count}, expected 2 to {MAX_DRAWN:,} images to measure")
