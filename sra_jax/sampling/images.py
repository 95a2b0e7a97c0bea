"""From parameters and labels to images: chunks of latents, decoded a few at a time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from sra_jax.codecs import Codec
from sra_jax.core.errors import RunError
from sra_jax.sampling.sampler import Sampler, sample_chunks

CHUNK = 64  # images that one device samples at a time, unless asked otherwise
MAX_DRAWN = 10**8  # images at once; more is a slip of the hand
DECODE_BATCH = 16  # a VAE needs some 200 MB for each image of 256 pixels


@dataclass(frozen=True)
class Drawing:
    """Images to be drawn: the i-th, of class `labels[i]`, is a function of `seed` and i.

    One device samples `chunk` of them at a time. `labels` is int32 [N].
    """

    sampler: Sampler
    codec: Codec
    labels: np.ndarray
    seed: int = 0
    chunk: int = CHUNK

    @property
    def chunks(self) -> int:
        """How many chunks there are; the last may have fewer images."""
        return -(-len(self.labels) // self.chunk)

    def images(
        self, params: Any, wanted: Sequence[int], devices: Sequence[jax.Device]
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Yields (number, images uint8 [<= chunk, H, W, C]) of the chunks `wanted`.

        Raises:
          RunError: the model draws what is no image.
        """
        drawn = sample_chunks(
            self.sampler, params, self.labels, self.seed, self.chunk, wanted, devices
        )
        for number, latents in drawn:
            latents = np.asarray(latents)
            if not np.isfinite(latents).all():
                raise RunError(
                    f"the latents of chunk {number} are not finite; lower the guidance, or take "
                    "another checkpoint"
                )
            parts = range(0, len(latents), DECODE_BATCH)
            images = [self.codec.decode(latents[i : i + DECODE_BATCH]) for i in parts]
            # Cut only now: an image decoded in a batch of another size need not round alike.
            yield number, np.concatenate(images)[: len(self.labels) - number * self.chunk]
