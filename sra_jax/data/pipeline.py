"""From a latent data set to batches on devices, in an order that (seed, step) alone decides."""

import collections
import sys
from collections.abc import Callable, Iterator
from typing import TypeVar

import grain
import numpy as np

from sra_jax.data.latents import LatentSource
from sra_jax.errors import InputError

Batch = dict[str, np.ndarray]
Placed = TypeVar("Placed")

# grain would hold 500 batches ready; a few hide the disk and cost megabytes, not gigabytes.
_READING = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)


def batches(
    source: LatentSource,
    batch_size: int,
    seed: int,
    start_step: int,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """Endless batches from `start_step` on, reshuffled every epoch, read ahead by two threads.

    The global batch of a step is a pure function of `seed` and the step. Of its rows, process i of
    n holds the contiguous `[i * batch_size / n, (i + 1) * batch_size / n)`, so that a global array
    made with `jax.make_array_from_process_local_data` is the same for any number of processes.
    Epochs run on without a break: one batch may hold the end of an epoch and the start of the next.

    Args:
        source: the records.
        batch_size: of the global batch, B.
        seed: of the order, in [0, 2**32).
        start_step: the step of the first batch.
        process_index, process_count: which of the processes this is.

    Returns:
        An iterator, with `close()`, over "moments" `[B / n, h, w, 2c]` and "labels" `[B / n]`.

    Raises:
        InputError: the data set is smaller than a batch, the batch does not divide among the
            processes, or the seed is out of range.
    """
    if not 0 <= seed < 2**32:
        raise InputError(f"seed {seed}, expected one in [0, 2**32); choose another")
    if not 0 < batch_size <= len(source):
        raise InputError(
            f"batch size {batch_size} with {len(source)} records, expected 1 to {len(source)}; "
            "choose a smaller batch or a larger data set"
        )
    if batch_size % process_count:
        raise InputError(
            f"batch size {batch_size} among {process_count} processes, expected a multiple of "
            f"{process_count}; change the batch size"
        )
    order = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat()
    rows = batch_size // process_count

    def read(step: int) -> Batch:
        first = step * batch_size + process_index * rows
        return source.read([order[position] for position in range(first, first + rows)])

    steps = grain.MapDataset.range(start_step, sys.maxsize)
    return iter(steps.map(read).to_iter_dataset(_READING))


def prefetch(
    iterator: Iterator[Batch], place: Callable[[Batch], Placed], depth: int = 2
) -> Iterator[Placed]:
    """Yields `place(batch)` of every batch, `depth` of them placed ahead of the consumer.

    It needs no thread: grain's own read ahead, and jax returns from a transfer before it is done.
    An error in the iterator reaches the consumer as it is; closing this closes the iterator too.

    Args:
        iterator: host batches.
        place: from a host batch to arrays on devices.
        depth: how many placed batches to hold beside the one in use.
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
