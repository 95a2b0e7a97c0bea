"""From images to Inception's features, on all devices of this process."""

import logging
import math
import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sra_jax.evaluation.images import ImageSet, batches
from sra_jax.evaluation.inception import Features, Inception
from sra_jax.training.reporting import format_seconds

PER_DEVICE = 64
PROGRESS_SECONDS = 5.0

_log = logging.getLogger(__name__)
_apply = jax.jit(Inception().apply)


def extract(params: Any, images: ImageSet, devices: Sequence[jax.Device]) -> Iterator[Features]:
    """Yields the features of all images in order, numpy arrays, a batch at a time.

    Every device takes an equal part of each batch, 64 images or fewer; the next batch is read while
    the devices work. Logs the rate and the time left every five seconds.
    """
    mesh = Mesh(np.array(devices), ("data",))
    split, copied = (NamedSharding(mesh, spec) for spec in (PartitionSpec("data"), PartitionSpec()))
    params = jax.device_put(params, copied)
    batch_size = len(devices) * min(PER_DEVICE, math.ceil(images.count / len(devices)))
    progress, running = _Progress(images), deque()
    for batch in batches(images.chunks(), batch_size):
        filled = np.resize(batch, (batch_size, *batch.shape[1:]))  # the last by repetition
        running.append((_apply({"params": params}, jax.device_put(filled, split)), len(batch)))
        if len(running) > 1:
            yield progress.passed(_fetch(*running.popleft()))
    for features, count in running:
        yield progress.passed(_fetch(features, count))


def _fetch(features: Features, count: int) -> Features:
    return Features(*(np.asarray(array)[:count] for array in features))


class _Progress:
    """Says now and then how far it is."""

    def __init__(self, images: ImageSet):
        self._images, self._done = images, 0
        self._began = self._told = time.perf_counter()

    def passed(self, features: Features) -> Features:
        self._done += len(features.pool)
        now = time.perf_counter()
        if now - self._told > PROGRESS_SECONDS:
            rate = self._done / (now - self._began)
            _log.info(
                "%s: %s/%s images  %.1f images/s  %s left",
                self._images.name,
                f"{self._done:,}",
                f"{self._images.count:,}",
                rate,
                format_seconds((self._images.count - self._done) / rate),
            )
            self._told = now
        return features
