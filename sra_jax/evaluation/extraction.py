"""From images to a network's features, on all devices of all processes."""

import logging
import math
from collections import deque
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sra_jax.core.progress import Progress
from sra_jax.data.images import CHUNK, ImageSet, batches
from sra_jax.evaluation.inception import Features

PER_DEVICE = 64

_log = logging.getLogger(__name__)


class Network(NamedTuple):
    """A feature extractor of images uint8 [B, H, W, 3], and its parameters."""

    module: nn.Module
    params: Any


def extract(
    network: Network, images: ImageSet, devices: Sequence[jax.Device]
) -> Iterator[Features]:
    """Yields the features of this process's part of the images, numpy arrays, a batch at a time.

    The parts of all processes, joined in order, are all images. Each of `devices` computes an equal
    part of a batch, at most 64 images, while the next batch is read. Logs the rate and the time
    left every five seconds.
    """
    first, last = _part(images.count)
    if first == last:
        return
    mesh = Mesh(np.array(devices), ("data",))
    split, copied = (NamedSharding(mesh, spec) for spec in (PartitionSpec("data"), PartitionSpec()))
    params = jax.device_put(network.params, copied)
    batch_size = len(devices) * min(PER_DEVICE, math.ceil((last - first) / len(devices)))
    progress, running = Progress(images.name, last - first, "images"), deque()
    for batch in batches(images.chunks(first, last), batch_size):
        filled = np.resize(batch, (batch_size, *batch.shape[1:]))  # repeats images of the last
        features = _apply(network.module, params, jax.device_put(filled, split))
        running.append((features, len(batch)))
        if len(running) > 1:
            yield _fetch(*running.popleft(), progress)
    for features, count in running:
        yield _fetch(features, count, progress)


@partial(jax.jit, static_argnums=0)
def _apply(module: nn.Module, params: Any, images: jax.Array) -> Features:
    return module.apply({"params": params}, images)


def _part(count: int) -> tuple[int, int]:
    """First and last (exclusive) image of this process: whole chunks, so that no two processes
    sample the same chunk."""
    chunks, processes = math.ceil(count / CHUNK), jax.process_count()
    bounds = [CHUNK * (chunks * i // processes) for i in range(processes)] + [count]
    return bounds[jax.process_index()], bounds[jax.process_index() + 1]


def _fetch(features: Features, count: int, progress: Progress) -> Features:
    fetched = Features(*(np.asarray(array)[:count] for array in features))
    progress.add(count)
    return fetched
