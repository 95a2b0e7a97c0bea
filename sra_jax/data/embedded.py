"""The embedded data sets, which need no download: their names, and their latents on disk."""

import os
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from sra_jax.codecs import PixelCodec
from sra_jax.data.digits import load_digits
from sra_jax.data.records import holds_latents, write_latents
from sra_jax.data.shapes import load_shapes
from sra_jax.data.spec import LatentSpec


class Embedded(NamedTuple):
    """`load()` returns images uint8 [N, *shape] and labels int32 [N] below `num_classes`; `dtype`
    is that of the stored moments."""

    load: Callable[[], tuple[np.ndarray, np.ndarray]]
    shape: tuple[int, int, int]
    num_classes: int
    dtype: str


EMBEDDED = {
    "embedded:digits": Embedded(load_digits, (8, 8, 1), 10, "float32"),
    # Every pixel survives float16, which keeps the shapes at 250 MB.
    "embedded:shapes": Embedded(load_shapes, (32, 32, 3), 16, "float16"),
}
EMBEDDED_NAMES = " or ".join(EMBEDDED)

_BATCH = 1000  # images whose moments, 8 times their size, are in memory at a time


def ensure_embedded(name: str, folder: str | os.PathLike) -> str:
    """Writes the embedded set `name`, "embedded:SET", at FOLDER/SET as latents of pixels, unless it
    is there, and returns that path.

    Several processes may call it at once; a killed call leaves nothing behind that opens.

    Raises:
        InputError: FOLDER/SET is something else, is damaged, or is not on a disk.
    """
    directory = os.path.join(folder, name.partition(":")[2])
    if holds_latents(directory):
        return directory
    embedded, codec = EMBEDDED[name], PixelCodec()
    images, labels = embedded.load()
    spec = LatentSpec(
        codec=codec.name,
        scale=codec.scale,
        shift=codec.shift,
        latent_shape=embedded.shape,
        resolution=embedded.shape[0],
        image_channels=embedded.shape[2],
        num_classes=embedded.num_classes,
        dtype=embedded.dtype,
    )
    rows = [slice(first, first + _BATCH) for first in range(0, len(images), _BATCH)]
    batches = ((codec.encode(images[part]), labels[part]) for part in rows)
    try:
        write_latents(directory, spec, [batches])
    except Exception:
        if not holds_latents(directory):  # else another process was faster, which is as good
            raise
    return directory
