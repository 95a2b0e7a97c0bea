"""The identity codec: a pixel in [-1, 1] is its own latent."""

import dataclasses
from typing import ClassVar

import numpy as np

from sra_jax.core.errors import InputError


@dataclasses.dataclass(frozen=True)
class PixelCodec:
    """Pixels as latents, with zero standard deviation; all 256 values survive the round trip."""

    name: ClassVar[str] = "pixels"
    downsampling: ClassVar[int] = 1
    scale: float = 1.0
    shift: float = 0.0

    def encode(self, images: np.ndarray) -> np.ndarray:
        """Images uint8 `[B, H, W, C]` -> moments float32 `[B, H, W, 2C]`.

        Raises:
            InputError: the images are not uint8.
        """
        if images.dtype != np.uint8:
            raise InputError(
                f"images are {images.dtype}, expected uint8 in [0, 255]; convert them first"
            )
        mean = images.astype(np.float32) / 127.5 - 1
        return np.concatenate([mean, np.zeros_like(mean)], axis=-1)

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """Latents float32 `[B, H, W, C]` -> images uint8 `[B, H, W, C]`, clipped and rounded."""
        pixels = (np.asarray(latents, np.float32) - self.shift) / self.scale
        return np.rint(np.clip((pixels + 1) * 127.5, 0, 255)).astype(np.uint8)
