"""Features on disk, so that they are computed once."""

import contextlib
import hashlib
import json
import logging
import shutil
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sra_jax.core.errors import InputError
from sra_jax.core.files import atomic_write, disk_failures_told
from sra_jax.probing.features import Pooled

IDENTITY_FILE = "identity.json"
INDEX_FILE = "index.json"

_log = logging.getLogger(__name__)


def keeping_features(directory: Path) -> contextlib.AbstractContextManager[None]:
    """Turns what the disk refuses while entered into a RunError."""
    return disk_failures_told(
        directory, lambda: "what was finished is kept", "make room, or give another --out"
    )


class Shape(NamedTuple):
    """Of the features of one block at one time: images N, and width D."""

    count: int
    width: int


class FeatureCache:
    """The pooled features of one set of images under one checkpoint.

    A .npy, float32 [N, D], for each block and time, which anything reads, and an index with their
    checksums. A file is there whole or not at all; one that has been damaged counts as missing.
    Only one process may use a cache at a time.
    """

    def __init__(self, root: Path, name: str, identity: Mapping[str, Any], shape: Shape):
        """Opens, or makes, the cache in `root` of all that `identity` (JSON) tells apart.

        Raises:
          RunError: the disk is full, or cannot be written to.
        """
        text = json.dumps(identity, sort_keys=True)
        code = hashlib.sha256(text.encode()).hexdigest()[:12]
        self.directory, self.shape = root / f"{name}-{code}", shape
        with keeping_features(self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)
            for scratch in self.directory.glob("*.tmp*"):  # of a run that was killed
                scratch.unlink()
            if not (self.directory / IDENTITY_FILE).exists():
                self._write_text(IDENTITY_FILE, json.dumps(identity, indent=2))
        self._index = self._read_index()
        self._whole: set[str] = set()

    def missing(self, blocks: Sequence[int], time: float) -> tuple[int, ...]:
        """Which of `blocks` have no features here at `time`. Reads those that have."""
        return tuple(block for block in blocks if not self._is_whole(_name(block, time)))

    def load(self, block: int, time: float) -> np.ndarray:
        """Features [N, D], read from the disk as they are used."""
        return np.load(self.directory / _name(block, time), mmap_mode="r", allow_pickle=False)

    def norm(self, block: int, time: float) -> float:
        """The mean over images and patches of a patch feature's norm."""
        return self._index[_name(block, time)]["norm"]

    def store(self, blocks: Sequence[int], time: float, batches: Iterable[Pooled]) -> None:
        """Writes the features of all images, in order, of `blocks` at `time`.

        Raises:
          InputError: there is no room for them; nothing was done.
          RunError: the disk is full, or cannot be written to.
        """
        self._check_room(len(blocks))
        names = [_name(block, time) for block in blocks]
        sums, norms = [0] * len(names), np.zeros(len(names))
        with keeping_features(self.directory):
            with contextlib.ExitStack() as stack:
                scratch = [stack.enter_context(atomic_write(self.directory / n)) for n in names]
                files = [stack.enter_context(open(path, "wb")) for path in scratch]
                for file in files:
                    header = {"descr": "<f4", "fortran_order": False, "shape": tuple(self.shape)}
                    np.lib.format.write_array_header_1_0(file, header)
                for pooled in batches:
                    for k, file in enumerate(files):
                        data = np.ascontiguousarray(pooled.features[k], "<f4").tobytes()
                        sums[k] = zlib.crc32(data, sums[k])
                        file.write(data)
                    norms += np.asarray(pooled.norms, np.float64).sum(axis=1)
            for name, checksum, norm in zip(names, sums, norms, strict=True):
                self._index[name] = {"crc32": checksum, "norm": float(norm) / self.shape.count}
            self._write_text(INDEX_FILE, json.dumps(self._index, indent=2, sort_keys=True))
        self._whole.update(names)

    def _is_whole(self, name: str) -> bool:
        if name in self._whole:
            return True
        if name not in self._index:
            return False
        try:
            array = np.load(self.directory / name, mmap_mode="r", allow_pickle=False)
            whole = array.shape == tuple(self.shape) and array.dtype == np.float32
            whole = whole and zlib.crc32(array) == self._index[name]["crc32"]
        except (OSError, ValueError, EOFError):
            whole = False
        if whole:
            self._whole.add(name)
        else:
            _log.warning("features %s are damaged, and computed again", self.directory / name)
        return whole

    def _read_index(self) -> dict[str, Any]:
        try:
            index = json.loads((self.directory / INDEX_FILE).read_text())
            return {name: {k: row[k] for k in ("crc32", "norm")} for name, row in index.items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            _log.warning("features in %s are damaged, and computed again", self.directory)
            return {}

    def _check_room(self, files: int) -> None:
        needed = files * self.shape.count * self.shape.width * 4
        free = shutil.disk_usage(self.directory).free
        if needed > free:
            raise InputError(
                f"features take {needed / 1e9:.1f} GB, but {self.directory} has {free / 1e9:.1f} "
                "GB left; ask for fewer --blocks, --times or images (--num), or give another --out"
            )

    def _write_text(self, name: str, text: str) -> None:
        with atomic_write(self.directory / name) as scratch:
            scratch.write_text(text + "\n")


def _name(block: int, time: float) -> str:
    return f"block{block:02d}-t{time}.npy"
