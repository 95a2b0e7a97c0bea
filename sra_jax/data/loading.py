"""From numbered items, images or files of latents, to stacked batches, read ahead by threads."""

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
    """An item that cannot be used; says why in one line, but not which one it is."""


def why_unreadable(error: Exception) -> str:
    """What `error` of `np.load`, or of reading an .npz, says about the file, in one line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = next(iter(str(error).splitlines()), "") or type(error).__name__
    if "pickle" in text:  # numpy takes all that it does not know for that
        return "it holds text or Python objects, not arrays of numbers"
    if isinstance(error, zipfile.BadZipFile) and "not a zip" in text:
        return "it is of another kind, or cut short"
    return text


@dataclass(frozen=True)
class Loader:
    """Reads items and stacks their records.

    Attributes:
        read: from an index to the item's records, arrays of one shape, and its label; raises
            BadItemError. Several threads call it.
        name: from an index to what a person calls the item.
        batch_size: records a batch.
        threads: how many read.
        skip_bad: leave bad items out, rather than stop at the first.
    """

    read: Callable[[int], tuple[list[np.ndarray], int]]
    name: Callable[[int], str]
    batch_size: int
    threads: int
    skip_bad: bool

    def batches(self, items: range, skipped: list[str]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Records `[B, ...]` and labels int32 `[B]` of `items`, in order; the last may be short.

        Adds the names of items left out, with the reason, to `skipped`.

        Raises:
            InputError: an item cannot be used; names it.
        """
        records, labels = [], []
        with ThreadPoolExecutor(self.threads) as pool:
            loaded = map_ahead(pool, self._try_read, items, 2 * self.batch_size)
            for index, item in zip(items, loaded, strict=True):
                if isinstance(item, BadItemError):
                    skipped.append(self._skip(index, item))
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

    def _skip(self, index: int, error: BadItemError) -> str:
        named = f"{self.name(index)} ({error})"
        if not self.skip_bad:
            raise InputError(f"cannot use {named}; mend or remove it, or pass --skip_bad")
        return named


def map_ahead(
    pool: Executor, function: Callable[[Item], Result], items: Iterable[Item], ahead: int
) -> Iterator[Result]:
    """Yields `function(item)` in order, up to `ahead` of them computed by `pool` before asked."""
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
    """SHA-256 of `parts` in a row, in hex."""
    total = hashlib.sha256()
    for part in parts:
        total.update(part)
    return total.hexdigest()


def _stack(records: list, labels: list, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Takes the first `count` off both lists."""
    batch = np.stack(records[:count]), np.array(labels[:count], np.int32)
    del records[:count], labels[:count]
    return batch
