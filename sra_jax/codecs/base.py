"""What a codec is: images to the moments of a latent posterior, and latents back to images."""

from typing import Protocol

import numpy as np


class Codec(Protocol):
    """Images `[B, H, W, C]` <-> latents `[B, h, w, c]`, with `h = H / downsampling`.

    A latent, as the model sees it, is `(mean + std * eps) * scale + shift`.

    Attributes:
        name: what `codec_from_name` and a data set's metadata call it.
        scale, shift: from the codec's own latents to the model's.
        downsampling: image pixels to one latent pixel, along each side.
    """

    name: str
    scale: float
    shift: float
    downsampling: int

    def encode(self, images: np.ndarray) -> np.ndarray:
        """Images uint8 `[B, H, W, C]` -> moments float32 `[B, h, w, 2c]`.

        The moments are mean and standard deviation, concatenated on channels, before scale and
        shift.
        """

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """Latents float32 `[B, h, w, c]`, as the model sees them -> images uint8 `[B, H, W, C]`.

        Undoes scale and shift itself.
        """
