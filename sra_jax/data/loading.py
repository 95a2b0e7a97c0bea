"""Reads numbered items (images, files of latents) by threads and stacks them into batches."""

import hashlib
import zipfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from sra_jax.core.errors import InputError

Item = TypeVar("Item")
Result = TypeVar("Result")


class BadItemError(Exception):
    """An item that cannot be used. The message is one line with the reason, without the name."""


def why_unreadable(error: Exception) -> str:
    """The reason, in one line, why `np.load` or reading an .npz failed with `error`."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = next(iter(str(error).splitlines()), "") or type(error).__name__
    if "pickle" in text:  # numpy takes every unknown format for a pickle
        return "it holds text or Python objects, not arrays of numbers"
    if isinstance(error, zipfile.BadZipFile) and "not a zip" in text:
        return "it is of another kind, or cut short"
    return text


@dataclass(frozen=True)
class Loader:
    """Reads items and stacks their records.

    Attributes:
        read: maps an index to the item's records, arrays of one shape, and its label; raises
            BadItemError. Several threads call it.
        name: maps an index to the item's name in messages.
        batch_size: records in a batch, B.
        threads: number of threads that read.
        skip_bad: leave bad items out, instead of raising InputError.
    """

    read: Callable[[int], tuple[list[np.ndarray], int]]
    name: Callable[[int], str]
    batch_size: int
    threads: int
    skip_bad: bool

    def batches(self, items: range, skipped: list[str]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields records `[B, ...]` and labels int32 `[B]` of `items`, in order.

        The last batch may be short. The names of items left out, with the reason, are added to
        `skipped`.

        Raises:
            InputError: an item cannot be used.
        """
        records, labels = [], []
        with ThreadPoolExecutor(self.threads) as pool:
            loaded = map_ahead(pool, self._try_read, items, 2 * self.batch_size)
            for index, item in zip(items, loaded, strict=True):
                if isinstance(item, BadItemError):
                    bad = f"{self.name(index)} ({item})"
                    if not self.skip_bad:
                        raise InputError(f"cannot use {bad}; mend or remove it, or pass --skip_bad")
                    skipped.append(bad)
                    continue
                records += item[0]
                labels += [item[1]] * len(item[0])
                while len(records) >= self.batch_size:
                    yield _stack(records, labels, self.batch_size)
        if records:
            yield _stack(records, labels, len(records))

    def _try_read(self, index: int) -> tuple[list[np.ndarray], int] | BadItemError:
        try:
            return self.read(index)
        except BadItemError as error:
            return error


def map_ahead(
    pool: Executor, function: Callable[[Item], Result], items: Iterable[Item], ahead: int
) -> Iterator[Result]:
    """Yields `function(item)` in order; `pool` computes up to `ahead` of them in advance."""
    pending = deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()


def digest(*parts: bytes) -> str:
    """SHA-256 of the concatenated `parts`, in hex."""
    total = hashlib.sha256()
    for part in parts:
        total.update(part)
    return total.hexdigest()


def _stack(records: list, labels: list, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Removes the first `count` from both lists and stacks them."""
    batch = np.stack(records[:count]), np.array(labels[:count], np.int32)
    del records[:count], labels[:count]
    return batch
