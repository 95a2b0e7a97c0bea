"""Reads batches from a latent data set, in an order that only seed and step decide."""

import collections
import sys
from collections.abc import Callable, Iterator
from typing import TypeVar

import grain
import numpy as np

from sra_jax.core.errors import InputError
from sra_jax.data.records import LatentSource

Batch = dict[str, np.ndarray]
Placed = TypeVar("Placed")

# By default grain holds 500 batches ready; a few hide the disk and need less memory.
_READING = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)


def batches(
    source: LatentSource,
    batch_size: int,
    seed: int,
    start_step: int,
    rows: np.ndarray | None = None,
) -> Iterator[Batch]:
    """Endless batches from `start_step` on, reshuffled every epoch, read ahead by two threads.

    The global batch of a step is a pure function of `seed` and the step; it does not depend on the
    number of processes, each of which reads its own `rows`. One batch may hold the end of an epoch
    and the start of the next.

    Args:
        source: the records.
        batch_size: size of the global batch, B.
        seed: seed of the order, in [0, 2**32).
        start_step: the step of the first batch.
        rows: rows of the global batch to read, b of them; all if None.

    Returns:
        An iterator, with `close()`, over "moments" `[b, h, w, 2c]` and "labels" `[b]`.

    Raises:
        InputError: the data set is smaller than a batch, or the seed is out of range.
    """
    if not 0 <= seed < 2**32:
        raise InputError(f"seed {seed}, expected one in [0, 2**32); choose another")
    if not 0 < batch_size <= len(source):
        raise InputError(
            f"batch size {batch_size} with {len(source)} records, expected 1 to {len(source)}; "
            "choose a smaller batch or a larger data set"
        )
    order = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat()
    rows = np.arange(batch_size) if rows is None else rows

    def read(step: int) -> Batch:
        return source.read([order[int(position)] for position in step * batch_size + rows])

    steps = grain.MapDataset.range(start_step, sys.maxsize)
    return iter(steps.map(read).to_iter_dataset(_READING))


def prefetch(
    iterator: Iterator[Batch], place: Callable[[Batch], Placed], depth: int = 2
) -> Iterator[Placed]:
    """Yields `place(batch)` of every batch, and places `depth` batches in advance.

    It needs no thread, because grain's threads read ahead and JAX transfers asynchronously. Errors
    of the iterator reach the consumer unchanged. Closing this closes the iterator too.

    Args:
        iterator: host batches.
        place: maps a host batch to arrays on devices.
        depth: number of placed batches to hold beside the one in use.
    """
    placed = collections.deque()
    try:
        for batch in iterator:
            placed.append(place(batch))
            if len(placed) > depth:
                yield placed.popleft()
        while placed:
            yield placed.popleft()
    finally:
        if hasattr(iterator, "close"):
            iterator.close()
