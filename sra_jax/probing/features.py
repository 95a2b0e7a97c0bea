"""The features inside a model: any blocks, at any time, of many images, over any mesh.

What the model is shown: the mean of each image's posterior rather than a draw from it, under noise
that depends on the image's number alone, with the null label. The image is therefore the same at
every time and in every checkpoint, and the model is never told its class.
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

from sra_jax.core.random import stream_key
from sra_jax.data.loading import map_ahead
from sra_jax.data.records import LatentSource
from sra_jax.distributed.mesh import BATCH_AXES, batch_sharding
from sra_jax.distributed.sharding import tree_shardings
from sra_jax.models import DiffusionTransformer
from sra_jax.processes import Process

PER_DEVICE = 64  # images; of XL/2 they make 1 GB of features in bfloat16
READ_AT_ONCE = 1024


@dataclass(frozen=True)
class Lens:
    """How images are shown to a model: all that decides its features beside weights and images.

    `scale` and `shift` lead from stored latents to the model's; `seed` is that of the noise.
    """

    model: DiffusionTransformer
    process: Process
    scale: float = 1.0
    shift: float = 0.0
    seed: int = 0

    def show(self, moments: jax.Array, numbers: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Latents and their noise, [B, H, W, C], of `moments` [B, H, W, 2 C] and the images'
        `numbers` [B]."""
        mean = jnp.split(moments.astype(jnp.float32), 2, axis=-1)[0]
        key = stream_key(self.seed, "probe")
        draw = partial(jax.random.normal, shape=mean.shape[1:])
        noise = jax.vmap(lambda number: draw(jax.random.fold_in(key, number)))(numbers)
        return mean * self.scale + self.shift, noise

    def null_labels(self, count: int) -> jax.Array:
        """What stands for no class: int32 [count]."""
        return jnp.full(count, self.model.config.num_classes, jnp.int32)

    @partial(jax.jit, static_argnames=("self", "blocks"))
    def patch_features(
        self,
        params: Any,
        moments: jax.Array,
        numbers: jax.Array,
        t: jax.Array,
        blocks: tuple[int, ...],
    ) -> "Seen":
        """What K increasing `blocks` make of the images at one time `t` [] of the process."""
        x, noise = self.show(moments, numbers)
        times = jnp.full(len(x), t)
        noisy = self.process.corrupt(x, noise, times)
        features = self.model.apply(
            {"params": params},
            noisy,
            times,
            self.null_labels(len(x)),
            taps=blocks,
            stop_at=blocks[-1],
        ).features
        return Seen(noisy, jnp.stack([features[block] for block in blocks]))

    @partial(jax.jit, static_argnames=("self", "blocks"))
    def pooled_features(self, params, moments, numbers, t, blocks) -> "Pooled":
        """The same, averaged over patches in float32."""
        seen = self.patch_features(params, moments, numbers, t, blocks)
        features = seen.features.astype(jnp.float32)
        return Pooled(features.mean(axis=2), jnp.linalg.norm(features, axis=-1).mean(axis=2))


class Seen(NamedTuple):
    """Noisy latents, [B, H, W, C], and the features that blocks made of them, [K, B, N, D]."""

    inputs: jax.Array
    features: jax.Array


class Pooled(NamedTuple):
    """Features averaged over patches, [K, B, D], and the mean norm of a patch's feature, [K, B]."""

    features: jax.Array
    norms: jax.Array


class Selection(NamedTuple):
    """Some images of a data set: their `numbers` int32 [N] in it, and `labels` int32 [N].

    `digest` tells apart selections whose images, labels or numbers differ.
    """

    source: LatentSource
    numbers: np.ndarray
    labels: np.ndarray
    digest: str


def select(source: LatentSource, numbers: Sequence[int]) -> Selection:
    """Reads the images `numbers` of `source` once. Raises InputError where they are damaged."""
    numbers = np.asarray(numbers, np.int32)
    total, labels = hashlib.sha256(numbers.tobytes()), []
    for start in range(0, len(numbers), READ_AT_ONCE):
        records = source.read(numbers[start : start + READ_AT_ONCE].tolist())
        labels.append(records["labels"])
        total.update(records["labels"].tobytes())
        total.update(records["moments"].tobytes())
    return Selection(source, numbers, np.concatenate(labels), total.hexdigest())


def place_params(params: Any, mesh: Mesh) -> Any:
    """The parameters on the devices of `mesh`, split as in training. Raises InputError."""
    return jax.device_put(params, tree_shardings(params, mesh))


def extract(
    lens: Lens, params: Any, images: Selection, blocks: Sequence[int], time: float, mesh: Mesh
) -> Iterator[Pooled]:
    """Yields the pooled features of all `images` in order, numpy arrays, a batch at a time.

    One pass through the model serves all `blocks` (from 1, increasing) at one `time` in [0, 1]. The
    next batches are read while the devices work; the last one is filled up by repetition.

    Args:
        lens: how the images are shown.
        params: as `place_params` returns them.
        images: what to show.
        blocks: whose outputs are wanted.
        time: from data (0) to noise (1).
        mesh: the devices.
    """
    shards = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    count = len(images.numbers)
    size = shards * min(PER_DEVICE, math.ceil(count / shards))
    split = batch_sharding(mesh)
    lens = dataclasses.replace(lens, model=DiffusionTransformer(lens.model.config, split))
    t = lens.process.model_time(time)

    def read(start: int) -> tuple[np.ndarray, np.ndarray]:
        numbers = images.numbers[start : start + size]
        return images.source.read(numbers.tolist())["moments"], numbers

    running = deque()
    with ThreadPoolExecutor(1) as pool:
        for batch in map_ahead(pool, read, range(0, count, size), ahead=2):
            filled = [np.resize(array, (size, *array.shape[1:])) for array in batch]
            placed = jax.device_put(filled, split)
            pooled = lens.pooled_features(params, *placed, t, tuple(blocks))
            running.append((pooled, len(batch[1])))
            if len(running) > 1:
                yield _fetch(*running.popleft())
    for pooled, length in running:
        yield _fetch(pooled, length)


def _fetch(pooled: Pooled, count: int) -> Pooled:
    return Pooled(*(np.asarray(array)[:, :count] for array in pooled))
