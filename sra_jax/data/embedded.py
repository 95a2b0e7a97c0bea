"""The embedded data sets, which need no download: their names, and their latents on disk."""

import os
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from sra_jax.codecs import PixelCodec
from sra_jax.data.digits import load_digits
from sra_jax.data.latents import holds_latents, write_latents
from sra_jax.data.shapes import load_shapes
from sra_jax.data.spec import LatentSpec


class Embedded(NamedTuple):
    """`load()` returns images uint8 [N, H, W, C] and labels int32 [N]; `dtype` is that of the
    stored moments."""

    load: Callable[[], tuple[np.ndarray, np.ndarray]]
    dtype: str


# Every pixel survives float16, which keeps the shapes at 250 MB.
EMBEDDED = {
    "embedded:digits": Embedded(load_digits, "float32"),
    "embedded:shapes": Embedded(load_shapes, "float16"),
}
EMBEDDED_NAMES = " or ".join(EMBEDDED)

_BATCH = 1000  # images whose moments, 8 times their size, are in memory at a time


def ensure_embedded(name: str, directory: str | os.PathLike) -> None:
    """Writes the embedded set `name` at `directory` as latents of pixels, unless latents are there.

    Several processes may call it at once; a killed call leaves nothing behind that opens.

    Raises:
        InputError: `directory` holds something else, is damaged, or is not on a disk.
    """
    if holds_latents(directory):
        return
    images, labels = EMBEDDED[name].load()
    codec = PixelCodec()
    spec = LatentSpec(
        codec=codec.name,
        scale=codec.scale,
        shift=codec.shift,
        latent_shape=images.shape[1:],
        resolution=images.shape[1],
        image_channels=images.shape[3],
        num_classes=int(labels.max()) + 1,
        dtype=EMBEDDED[name].dtype,
    )
    rows = [slice(first, first + _BATCH) for first in range(0, len(images), _BATCH)]
    batches = ((codec.encode(images[part]), labels[part]) for part in rows)
    try:
        write_latents(directory, spec, [batches])
    except Exception:
        if not holds_latents(directory):  # else another process was faster, which is as good
            raise
