"""The embedded data set: 1797 handwritten digits of 8x8 pixels, carried by scikit-learn."""

import os

import numpy as np

from sra_jax.codecs import PixelCodec
from sra_jax.data.latents import holds_latents, write_latents
from sra_jax.data.spec import LatentSpec


def load_digits() -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 `[1797, 8, 8, 1]` in [0, 255] and labels int32 `[1797]` in [0, 10)."""
    from sklearn.datasets import load_digits as load  # a second to import, wanted only here

    digits = load()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    return images[..., None], digits.target.astype(np.int32)


def ensure_digits(directory: str | os.PathLike) -> None:
    """Writes the digits at `directory` as a latent data set of pixels, unless one is there.

    Several processes may call it at once; a killed call leaves nothing behind that opens.

    Raises:
        InputError: `directory` holds something else, is damaged, or is not on a disk.
    """
    if holds_latents(directory):
        return
    images, labels = load_digits()
    codec = PixelCodec()
    spec = LatentSpec(
        codec=codec.name,
        scale=codec.scale,
        shift=codec.shift,
        latent_shape=images.shape[1:],
        resolution=images.shape[1],
        image_channels=images.shape[3],
        num_classes=10,
        dtype="float32",
    )
    try:
        write_latents(directory, spec, [[(codec.encode(images), labels)]])
    except Exception:
        if not holds_latents(directory):  # else another process was faster, which is as good
            raise
