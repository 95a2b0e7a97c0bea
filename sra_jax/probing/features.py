"""Extracts the features of any blocks of a model at any time, for many images, on any mesh.

The model's input is the mean of each image's posterior (not a draw from it), with noise that
depends only on the image's number, and the null label. An image therefore has the same noise at
every time and in every checkpoint, and the model does not know its class.
"""

import dataclasses
import hashlib
import math
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from sra_jax.conditioning import Conditioning
from sra_jax.core.random import stream_key
from sra_jax.data.loading import map_ahead
from sra_jax.data.records import LatentSource
from sra_jax.distributed.mesh import BATCH_AXES, batch_sharding
from sra_jax.distributed.sharding import tree_shardings
from sra_jax.models import Pass, Trunk
from sra_jax.processes import Process

PER_DEVICE = 64  # images; their features in XL/2 take 1 GB in bfloat16
READ_AT_ONCE = 1024


@dataclass(frozen=True)
class FeatureExtractor:
    """Extracts features with fixed noise and the null label.

    Everything that affects them, except parameters and images, is a field. A latent is the stored
    mean * `scale` + `shift`; `seed` is the noise's.
    """

    trunk: Trunk
    process: Process
    conditioning: Conditioning
    scale: float = 1.0
    shift: float = 0.0
    seed: int = 0

    def inputs(self, moments: jax.Array, numbers: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns latents and noise [B, H, W, C] of `moments` [B, H, W, 2 C] and `numbers` [B]."""
        mean = jnp.split(moments.astype(jnp.float32), 2, axis=-1)[0]
        key = stream_key(self.seed, "probe")
        draw = partial(jax.random.normal, shape=mean.shape[1:])
        noise = jax.vmap(lambda number: draw(jax.random.fold_in(key, number)))(numbers)
        return mean * self.scale + self.shift, noise

    @partial(jax.jit, static_argnames=("self", "blocks"))
    def patch_features(
        self, params: Any, moments: jax.Array, numbers: jax.Array, t: float, blocks: tuple[int, ...]
    ) -> "Seen":
        """Computes the outputs of K increasing `blocks` at the process's own time `t`."""
        x, noise = self.inputs(moments, numbers)
        times = jnp.full(len(x), t)
        noisy = self.process.corrupt(x, noise, times)
        how = Pass(taps=blocks, stop_at=blocks[-1])
        null = self.conditioning.null(len(x))
        features = self.trunk.apply(params, noisy, times, null, how).features
        return Seen(noisy, jnp.stack([features[block] for block in blocks]))

    @partial(jax.jit, static_argnames=("self", "blocks"))
    def pooled_features(self, params, moments, numbers, t, blocks) -> "Pooled":
        """Averages `patch_features` over patches, in float32."""
        seen = self.patch_features(params, moments, numbers, t, blocks)
        features = seen.features.astype(jnp.float32)
        return Pooled(features.mean(axis=2), jnp.linalg.norm(features, axis=-1).mean(axis=2))


class Seen(NamedTuple):
    """Noisy latents [B, H, W, C] and their features [K, B, N, D]."""

    inputs: jax.Array
    features: jax.Array


class Pooled(NamedTuple):
    """Features averaged over patches [K, B, D], and the mean norm of a patch feature [K, B]."""

    features: jax.Array
    norms: jax.Array


class Selection(NamedTuple):
    """Some images of a data set: their `numbers` in it, int32 [N], and `labels`, int32 [N].

    Selections whose images, labels or numbers differ have another `digest`.
    """

    source: LatentSource
    numbers: np.ndarray
    labels: np.ndarray
    digest: str


def select(source: LatentSource, numbers: Sequence[int]) -> Selection:
    """Selects the images `numbers` of `source` and reads them once, for their labels and digest.

    Raises:
      InputError: an image is damaged.
    """
    numbers = np.asarray(numbers, np.int32)
    total, labels = hashlib.sha256(numbers.tobytes()), []
    for start in range(0, len(numbers), READ_AT_ONCE):
        records = source.read(numbers[start : start + READ_AT_ONCE].tolist())
        labels.append(records["labels"])
        total.update(records["labels"].tobytes())
        total.update(records["moments"].tobytes())
    return Selection(source, numbers, np.concatenate(labels), total.hexdigest())


def place_params(params: Any, trunk: Trunk, mesh: Mesh) -> Any:
    """Splits the trunk's parameters over the devices of `mesh` as in training.

    Raises:
      InputError: an axis does not divide over the devices.
    """
    return jax.device_put(params, tree_shardings(params, mesh, trunk.rules))


def extract(
    extractor: FeatureExtractor,
    params: Any,
    images: Selection,
    blocks: Sequence[int],
    time: float,
    mesh: Mesh,
) -> Iterator[Pooled]:
    """Computes the pooled features of all images, one pass through the model for all blocks.

    The next batches are read while the devices work. The last batch is padded by repetition.

    Args:
      extractor: computes the features of a batch.
      params: as `place_params` returns them.
      images: of any number.
      blocks: increasing, counted from 1.
      time: from data (0) to noise (1).
      mesh: the devices.

    Yields:
      Numpy arrays of one batch, in the order of the images.
    """
    shards = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    count = len(images.numbers)
    size = shards * min(PER_DEVICE, math.ceil(count / shards))
    sharding = batch_sharding(mesh)
    trunk = dataclasses.replace(extractor.trunk, batch_sharding=sharding)
    extractor = dataclasses.replace(extractor, trunk=trunk)
    t = extractor.process.model_time(time)

    def read(start: int) -> tuple[np.ndarray, np.ndarray]:
        numbers = images.numbers[start : start + size]
        return images.source.read(numbers.tolist())["moments"], numbers

    running = deque()
    with ThreadPoolExecutor(1) as pool:
        for batch in map_ahead(pool, read, range(0, count, size), ahead=2):
            padded = [np.resize(array, (size, *array.shape[1:])) for array in batch]
            placed = jax.device_put(padded, sharding)
            pooled = extractor.pooled_features(params, *placed, t, tuple(blocks))
            running.append((pooled, len(batch[1])))
            if len(running) > 1:  # fetching waits, so one more batch is always under way
                yield _fetch(*running.popleft())
    for pooled, length in running:
        yield _fetch(pooled, length)


def _fetch(pooled: Pooled, count: int) -> Pooled:
    return Pooled(*(np.asarray(array)[:, :count] for array in pooled))
