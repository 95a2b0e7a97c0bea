"""From parameters and labels to images: chunks of latents, decoded a few at a time."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from sra_jax.codecs import Codec
from sra_jax.core.errors import InputError, RunError
from sra_jax.data.images import in_colour
from sra_jax.sampling.sampler import Sampler, sample_chunks

CHUNK = 64  # images that one device samples at a time, unless asked otherwise
MAX_SAMPLES = 10**8  # more is surely a typing error
DECODE_BATCH = 16  # a VAE needs some 200 MB for each image of 256 pixels


@dataclass(frozen=True)
class ImageSampler:
    """Samples images. Image i, of class `labels[i]`, is a function of `seed` and i.

    Attributes:
      sampler: makes latents.
      codec: decodes them.
      labels: int32 [N].
      seed: of all noise.
      chunk: number of images that one device samples at a time.
    """

    sampler: Sampler
    codec: Codec
    labels: np.ndarray
    seed: int = 0
    chunk: int = CHUNK

    @property
    def chunks(self) -> int:
        """The number of chunks; the last one may have fewer images."""
        return -(-len(self.labels) // self.chunk)

    def images(
        self, params: Any, wanted: Sequence[int], devices: Sequence[jax.Device]
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Yields (number, images uint8 [<= chunk, H, W, C]) of the chunks `wanted`.

        Raises:
          RunError: the latents are not finite.
        """
        sampled = sample_chunks(
            self.sampler, params, self.labels, self.seed, self.chunk, wanted, devices
        )
        for number, latents in sampled:
            latents = np.asarray(latents)
            if not np.isfinite(latents).all():
                raise RunError(
                    f"the latents of chunk {number} are not finite; lower the guidance, or take "
                    "another checkpoint"
                )
            parts = range(0, len(latents), DECODE_BATCH)
            images = [self.codec.decode(latents[i : i + DECODE_BATCH]) for i in parts]
            # Cut only now: decoding a batch of another size may round differently.
            yield number, np.concatenate(images)[: len(self.labels) - number * self.chunk]


class SampledImages:
    """A model's images, sampled when they are read; an `ImageSet`."""

    def __init__(
        self,
        name: str,
        sampler: ImageSampler,
        params: Any,
        side: int,
        check: Callable[[], None] = lambda: None,
    ):
        """Samples images of `side` pixels with `params`, which each device of this process holds
        whole. `check` is called after every chunk and may raise to stop the sampling."""
        self.name, self.count, self.resolution = name, len(sampler.labels), (side, side)
        self._sampler, self._params, self._check = sampler, params, check

    def chunks(self, first: int, last: int) -> Iterator[np.ndarray]:
        """See `ImageSet`; `first` must be the start of a chunk."""
        size = self._sampler.chunk
        wanted = range(first // size, math.ceil(last / size))
        for _, images in self._sampler.images(self._params, wanted, jax.local_devices()):
            self._check()
            yield in_colour(images)


def check_count(count: int) -> None:
    """Raises InputError unless `count` images can be sampled and measured."""
    if not 2 <= count <= MAX_SAMPLES:
        raise InputError(f"num is {count}, expected 2 to {MAX_SAMPLES:,} images to measure")
