"""Computes features of every block at every time, and probes them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from sra_jax.core.errors import RunError
from sra_jax.core.progress import Progress
from sra_jax.probing.alignment import effective_rank
from sra_jax.probing.cache import FeatureCache
from sra_jax.probing.features import FeatureExtractor, Selection, extract
from sra_jax.probing.knn import knn_accuracy
from sra_jax.probing.linear import OnProgress, Protocol, accuracy, spread, standardise

HOST_BYTES = 2**33  # of features that the host holds before it writes them: 28 blocks of XL/2
DEVICE_BYTES = 2**31  # of features on one device at a time
RANK_IMAGES = 4096  # are enough to estimate the effective rank

Cell = tuple[int, float]  # a block and a time


class BlockReport(NamedTuple):
    """Measures of the features of one block at one time.

    `top1`, `top5` (of the linear probe) and `knn` are accuracies on test images. `effective_rank`
    is of training features, averaged over patches; `feature_norm` is the mean norm of a patch
    feature of a test image.
    """

    block: int
    time: float
    top1: float
    top5: float
    knn: float
    effective_rank: float
    feature_norm: float


class Split(NamedTuple):
    """The training or the test images, and the cache of their features."""

    images: Selection
    cache: FeatureCache


def fill(
    splits: Sequence[Split],
    extractor: FeatureExtractor,
    params: Any,
    blocks: Sequence[int],
    times: Sequence[float],
    mesh: Mesh,
) -> None:
    """Computes the features that the caches lack.

    At each time one pass through the model serves all blocks, unless HOST_BYTES is too small to
    hold their features.

    `params` are as `place_params` returns them.

    Raises:
      InputError: the disk has no room for the features.
      RunError: a feature is not finite, or the disk cannot be written to.
    """
    work = []
    for split in splits:
        size = max(1, HOST_BYTES // split.cache.bytes_of(blocks=1))
        for time in times:
            missing = split.cache.missing(blocks, time)
            work += [(split, time, missing[i : i + size]) for i in range(0, len(missing), size)]
    total = sum(len(split.images.numbers) for split, _, _ in work)
    progress = Progress("features", total, "images")

    def checked(batches):
        for pooled in batches:
            if not np.isfinite(pooled.norms).all():
                raise RunError("the model's features are not finite; take another checkpoint")
            yield pooled
            progress.add(pooled.norms.shape[1])

    for split, time, group in work:
        batches = extract(extractor, params, split.images, group, time, mesh)
        split.cache.store(group, time, checked(batches))


@dataclass(frozen=True)
class Survey:
    """Probes the features in two caches; labels are in [0, classes), `seed` is the protocol's."""

    train: Split
    test: Split
    classes: int
    protocol: Protocol
    seed: int
    devices: Sequence[jax.Device]

    def run(self, blocks: Sequence[int], times: Sequence[float]) -> list[BlockReport]:
        """Returns a report for each time and block; `fill` must have filled the caches.

        As many are probed together as the devices have memory for.
        """
        cells = [(block, time) for time in times for block in blocks]
        bytes_of_cell = sum(split.cache.bytes_of(blocks=1) for split in (self.train, self.test))
        size = max(1, DEVICE_BYTES * len(self.devices) // bytes_of_cell)
        progress, reports = Progress("classifiers", len(cells), "cells"), []
        for start in range(0, len(cells), size):
            group = cells[start : start + size]

            def on_progress(share: float, start=start, group=group) -> None:
                progress.reached(start + share * len(group))

            reports += self._probe(group, on_progress)
        return reports

    def _probe(self, cells: Sequence[Cell], on_progress: OnProgress) -> list[BlockReport]:
        labels, test_labels = self.train.images.labels, self.test.images.labels
        with jax.default_matmul_precision("float32"):  # a TPU would round features to bfloat16
            x, y = standardise(*(self._load(split, cells) for split in (self.train, self.test)))
            linear = self.protocol.fit(x, labels, self.classes, self.seed, on_progress)
            top1, top5 = (np.asarray(share) for share in accuracy(linear, y, test_labels))
            knn = np.asarray(knn_accuracy(x, labels, y, test_labels, self.classes))
        stride = math.ceil(len(labels) / RANK_IMAGES)  # a set may be ordered by class
        return [
            BlockReport(
                block=block,
                time=time,
                top1=float(top1[i]),
                top5=float(top5[i]),
                knn=float(knn[i]),
                effective_rank=effective_rank(self.train.cache.load(block, time)[::stride]),
                feature_norm=self.test.cache.norm(block, time),
            )
            for i, (block, time) in enumerate(cells)
        ]

    def _load(self, split: Split, cells: Sequence[Cell]) -> jax.Array:
        shape = (len(cells), *split.cache.shape)
        return spread(lambda i: split.cache.load(*cells[i]), shape, self.devices)
