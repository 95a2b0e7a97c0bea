"""A cache of features on disk, so that a second probe does not compute them again."""

import contextlib
import hashlib
import json
import logging
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sra_jax.core.errors import InputError
from sra_jax.core.files import atomic_write, disk_failures_told
from sra_jax.probing.features import Pooled

_log = logging.getLogger(__name__)


def keeping_features(directory: Path) -> contextlib.AbstractContextManager[None]:
    """Turns a disk error inside the `with` block into a RunError."""
    return disk_failures_told(
        directory, lambda: "what was finished is kept", "make room, or give another --out"
    )


class FeatureCache:
    """The pooled features of one set of images under one checkpoint.

    Each block and time has a file `blockBB-tT.npz` with `features`, float32 [N, D], and `norm`, the
    mean norm of a patch feature. Writes are atomic. A damaged file counts as missing: the zip
    format has a checksum of every array. Only one process may use a cache at a time.
    """

    def __init__(self, root: Path, name: str, identity: Mapping[str, Any], shape: tuple[int, int]):
        """Opens the cache in `root`, or makes it.

        Args:
          root: directory of all caches.
          name: first part of this cache's name; a hash of `identity` is the last part.
          identity: everything that the features depend on, as JSON.
          shape: (N, D) for N images and features of width D.

        Raises:
          RunError: the disk is full or cannot be written to.
        """
        text = json.dumps(identity, sort_keys=True)
        code = hashlib.sha256(text.encode()).hexdigest()[:12]
        self.directory, self.shape = root / f"{name}-{code}", shape
        with keeping_features(self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)
            for scratch in self.directory.glob("*.tmp*"):  # left by a killed run
                scratch.unlink()
            with atomic_write(self.directory / "identity.json") as scratch:  # for people to read
                scratch.write_text(json.dumps(identity, indent=2) + "\n")

    def missing(self, blocks: Sequence[int], time: float) -> tuple[int, ...]:
        """Returns those of `blocks` that have no features or damaged ones; reads all files."""
        return tuple(block for block in blocks if not self._is_whole(self._file(block, time)))

    def load(self, block: int, time: float) -> np.ndarray:
        """Reads the features [N, D]."""
        with np.load(self._file(block, time), allow_pickle=False) as arrays:
            return arrays["features"]

    def norm(self, block: int, time: float) -> float:
        """Reads the mean norm of a patch feature, over images and patches."""
        with np.load(self._file(block, time), allow_pickle=False) as arrays:
            return float(arrays["norm"])

    def bytes_of(self, blocks: int) -> int:
        """Returns the size of the features of `blocks` blocks at one time."""
        return 4 * blocks * self.shape[0] * self.shape[1]

    def store(self, blocks: Sequence[int], time: float, batches: Iterable[Pooled]) -> None:
        """Collects the features of K `blocks` in memory, then writes them.

        `batches` have the features [K, B, D] and norms [K, B] of all images, in order.

        Raises:
          InputError: the disk has no room for them; nothing was computed.
          RunError: the disk is full or cannot be written to.
        """
        needed, free = self.bytes_of(len(blocks)), shutil.disk_usage(self.directory).free
        if needed > free:
            raise InputError(
                f"features take {needed / 1e9:.1f} GB, but {self.directory} has {free / 1e9:.1f} "
                "GB left; ask for fewer --blocks, --times or images (--num), or give another --out"
            )
        features = np.empty((len(blocks), *self.shape), np.float32)
        norms, done = np.zeros(len(blocks)), 0
        for pooled in batches:
            count = pooled.features.shape[1]
            features[:, done : done + count] = pooled.features
            norms += pooled.norms.sum(axis=1, dtype=np.float64)
            done += count
        with keeping_features(self.directory):
            for block, array, norm in zip(blocks, features, norms / done, strict=True):
                with atomic_write(self._file(block, time)) as scratch:
                    np.savez(scratch, features=array, norm=norm)

    def _file(self, block: int, time: float) -> Path:
        return self.directory / f"block{block:02d}-t{time}.npz"

    def _is_whole(self, path: Path) -> bool:
        if not path.exists():
            return False
        try:
            with np.load(path, allow_pickle=False) as arrays:  # raises if a checksum differs
                features, norm = arrays["features"], arrays["norm"]
            if (features.shape, features.dtype, norm.shape) == (self.shape, np.float32, ()):
                return True
        except Exception:  # a damaged zip file can raise almost anything
            pass
        _log.warning("features %s are damaged, and computed again", path)
        return False
