"""Finished samples on disk, one file a chunk, so that a command that was stopped resumes."""

import io
import json
import math
import os
import shutil
import tokenize
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sra_jax.core.errors import InputError
from sra_jax.core.files import atomic_write, disk_failures_told, lock
from sra_jax.core.tree import differences

LOCK_FILE = "lock"
REQUEST_FILE = "request.json"


class PartStore:
    """Finished chunks of images, in the directory OUT.parts until they are merged into `out`.

    With `alone`, no other such store opens until this one has merged or is gone. If several
    processes sample together, one of them asks for that.

    Raises:
      InputError: the chunks there, or `out`, belong to another `request`; another process samples
        them; or they cannot be kept there.
    """

    def __init__(self, out: Path, request: Mapping[str, Any], alone: bool = True):
        self._out, self._request = out, json.dumps(request, sort_keys=True).encode()
        self._lock = None
        if out.exists():
            self._expect_same_request(out, _read_request(out))
        directory = self._directory = out.with_name(f"{out.name}.parts")
        in_use = f"samples into {directory}; wait for it, or choose another --out"
        try:
            directory.mkdir(parents=True, exist_ok=True)
            if alone:
                self._lock = lock(directory / LOCK_FILE, in_use)
            path = directory / REQUEST_FILE
            if not path.exists():
                with atomic_write(path) as scratch:
                    scratch.write_bytes(self._request)
            begun = path.read_bytes()
        except OSError as error:
            raise InputError(
                f"cannot keep parts in {directory}: {error.strerror or error}; remove it, or "
                "choose another --out"
            ) from None
        self._expect_same_request(directory, begun)

    def missing(self, count: int) -> list[int]:
        """Which of the chunks 0 to `count` - 1 are not there yet, or are damaged."""
        return [number for number in range(count) if not _is_whole(self._path(number))]

    def save(self, number: int, images: np.ndarray) -> None:
        """Writes chunk `number` atomically. Raises RunError: the disk fails."""
        path, buffer = self._path(number), io.BytesIO()
        np.save(buffer, images)  # to a file it would not notice a disk that takes only a part
        with disk_failures_told(path, self._safe), atomic_write(path) as scratch:
            scratch.write_bytes(buffer.getvalue())

    def images(self, count: int) -> Iterator[np.ndarray]:
        """The first `count` images, uint8 [B, H, W, C] a chunk."""
        number = 0
        while count > 0:
            chunk = np.load(self._path(number), allow_pickle=False)[:count]
            yield chunk
            number, count = number + 1, count - len(chunk)

    def merge(self, labels: np.ndarray) -> None:
        """Writes `out` atomically, then removes the chunks. Holds one chunk in memory at a time.

        `out` holds all images as `arr_0` uint8 [N, H, W, C], as the ADM suite reads them, `labels`
        [N] and the request.

        Raises:
          RunError: the disk fails; the chunks are kept.
        """
        # A fixed name, so that the next run overwrites the large file that a kill leaves.
        scratch = self._out.with_name(f".{self._out.name}.tmp")
        with (
            disk_failures_told(self._out, self._safe),
            atomic_write(self._out, scratch),
            zipfile.ZipFile(scratch, "w") as archive,
        ):
            with archive.open("arr_0.npy", "w", force_zip64=True) as file:
                shape = (len(labels), *next(self.images(1)).shape[1:])
                header = {"descr": "|u1", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
                for chunk in self.images(len(labels)):
                    file.write(chunk.tobytes())
            with archive.open("labels.npy", "w") as file:
                np.save(file, labels, allow_pickle=False)
            with archive.open(REQUEST_FILE, "w") as file:  # `writestr` would add the date
                file.write(self._request)
        self._unlock()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _expect_same_request(self, path: Path, found: bytes) -> None:
        """Raises InputError, and unlocks, if `found` at `path` is another request than this one."""
        if found == self._request:
            return
        self._unlock()
        try:
            lines = differences(json.loads(found), json.loads(self._request))
            differing = f" ({', '.join(lines)})"
        except ValueError:
            differing = ""
        raise InputError(
            f"{path} does not belong to this request{differing}; choose another --out, or remove it"
        )

    def _safe(self) -> str:
        return f"finished chunks are safe in {self._directory}"

    def _unlock(self) -> None:
        if self._lock:
            self._lock.close()

    def _path(self, number: int) -> Path:
        return self._directory / f"{number:06d}.npy"


def _read_request(path: Path) -> bytes:
    """The request that the images at `path` were sampled for; b"" for another file."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.read(REQUEST_FILE)
    except (OSError, KeyError, zipfile.BadZipFile):
        return b""


def _is_whole(path: Path) -> bool:
    """Whether `path` holds images uint8 [B, H, W, C], none of them cut off."""
    try:
        with open(path, "rb") as file:
            if np.lib.format.read_magic(file) != (1, 0):
                return False
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            size = file.tell() + math.prod(shape)
            return dtype == np.uint8 and len(shape) == 4 and os.fstat(file.fileno()).st_size == size
    except (OSError, ValueError, EOFError, tokenize.TokenError):
        return False
