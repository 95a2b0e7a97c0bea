"""All that is asked of the features of every block at every time."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from sra_jax.core.errors import RunError
from sra_jax.core.progress import Progress
from sra_jax.probing.alignment import effective_rank
from sra_jax.probing.cache import FeatureCache
from sra_jax.probing.features import Lens, Selection, extract
from sra_jax.probing.knn import knn_accuracy
from sra_jax.probing.linear import Protocol, accuracy, spread, standardise

DEVICE_BYTES = 2**31  # of features that one device holds at a time
RANK_IMAGES = 4096  # are enough to see into how many directions features spread


class CellReport(NamedTuple):
    """What the features of one block at one time are worth.

    `top1` and `top5` are the linear probe's accuracies, `knn` that of the nearest neighbours, all
    on held-out images; `effective_rank` is of the training features, averaged over patches;
    `feature_norm` is the mean norm of a held-out patch's feature.
    """

    block: int
    time: float
    top1: float
    top5: float
    knn: float
    effective_rank: float
    feature_norm: float


class Half(NamedTuple):
    """The images of one side of the split, and where their features are."""

    images: Selection
    cache: FeatureCache


def fill(
    halves: Sequence[Half],
    lens: Lens,
    params: Any,
    blocks: Sequence[int],
    times: Sequence[float],
    mesh: Mesh,
) -> None:
    """Computes the features that the caches lack, one pass for all blocks at each time.

    `params` are placed on `mesh`. Raises InputError and RunError, as `FeatureCache.store` does.
    """
    work = [(half, time, half.cache.missing(blocks, time)) for half in halves for time in times]
    work = [(half, time, lacking) for half, time, lacking in work if lacking]
    total = sum(len(half.images.numbers) for half, _, _ in work)
    progress = Progress("features", total, "images")

    def counted(batches):
        for pooled in batches:
            if not np.isfinite(pooled.norms).all():
                raise RunError("the model's features are not finite; take another checkpoint")
            yield pooled
            progress.add(pooled.norms.shape[1])

    for half, time, lacking in work:
        batches = extract(lens, params, half.images, lacking, time, mesh)
        half.cache.store(lacking, time, counted(batches))


def survey(
    train: Half,
    test: Half,
    blocks: Sequence[int],
    times: Sequence[float],
    classes: int,
    protocol: Protocol,
    seed: int,
    devices: Sequence[jax.Device],
) -> list[CellReport]:
    """A report for each of `times` and `blocks`, whose features the caches hold.

    As many cells at once as the devices have room for, all of them at best.
    """
    cells = [(block, time) for time in times for block in blocks]
    images = len(train.images.numbers) + len(test.images.numbers)
    room = DEVICE_BYTES * len(devices) // (4 * images * train.cache.shape.width)
    size = max(room, 1)
    progress, reports = Progress("classifiers", len(cells), "cells"), []
    for start in range(0, len(cells), size):
        group = cells[start : start + size]

        def told(share: float, start=start, group=group) -> None:
            progress.reached(start + share * len(group))

        reports += _survey_group(group, train, test, classes, protocol, seed, devices, told)
    return reports


def _survey_group(
    cells: Sequence[tuple[int, float]],
    train: Half,
    test: Half,
    classes: int,
    protocol: Protocol,
    seed: int,
    devices: Sequence[jax.Device],
    told: Callable[[float], None],
) -> list[CellReport]:
    loaded = [[half.cache.load(*cell) for cell in cells] for half in (train, test)]
    labels, test_labels = train.images.labels, test.images.labels
    with jax.default_matmul_precision("float32"):  # a TPU would round features to bfloat16
        x, y = standardise(*(spread(features, devices) for features in loaded))
        linear = protocol.fit(x, labels, classes, seed, told)
        top1, top5 = (np.asarray(share) for share in accuracy(linear, y, test_labels))
        knn = np.asarray(knn_accuracy(x, labels, y, test_labels, classes))
    every = math.ceil(len(labels) / RANK_IMAGES)  # a stride, as a set may be ordered by class
    return [
        CellReport(
            block=block,
            time=time,
            top1=float(top1[i]),
            top5=float(top5[i]),
            knn=float(knn[i]),
            effective_rank=effective_rank(loaded[0][i][::every]),
            feature_norm=test.cache.norm(block, time),
        )
        for i, (block, time) in enumerate(cells)
    ]
