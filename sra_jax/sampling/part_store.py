"""Samples on disk while they are being drawn: one file a chunk, so that nothing is drawn twice."""

import json
import math
import os
import shutil
import tokenize
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sra_jax.core.errors import InputError
from sra_jax.core.files import atomic_write, disk_failures_told, lock
from sra_jax.core.tree import differences

LOCK_FILE = "lock"
REQUEST_FILE = "request.json"


class PartStore:
    """Finished chunks of images beside the file that they will become, `out`.parts.

    Where `alone`, no other such store opens until this one has merged or is gone. Of the processes
    that draw together, one asks for that.

    Raises:
      InputError: the chunks there, or `out`, belong to another `request`, another process draws
        them, or they cannot be kept there.
    """

    def __init__(self, out: Path, request: Mapping[str, Any], alone: bool = True):
        self._out, self._request = out, json.dumps(request, sort_keys=True).encode()
        if out.exists() and (drawn := _request_of(out)) != self._request:
            raise InputError(
                f"{out} holds what this request does not draw{_differing(drawn, self._request)}; "
                "choose another --out, or remove it"
            )
        self._directory = out.with_name(f"{out.name}.parts")
        in_use = f"draws into {self._directory}; wait for it, or choose another --out"
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            self._lock = lock(self._directory / LOCK_FILE, in_use) if alone else None
            path = self._directory / REQUEST_FILE
            if not path.exists():
                with atomic_write(path) as scratch:
                    scratch.write_bytes(self._request)
            begun = path.read_bytes()
        except OSError as error:
            raise InputError(
                f"cannot keep parts in {self._directory}: {error.strerror or error}; remove it, or "
                "choose another --out"
            ) from None
        if begun != self._request:
            self._unlock()
            raise InputError(
                f"{self._directory} holds parts of another request"
                f"{_differing(begun, self._request)}; repeat that one, remove the directory, or "
                "choose another --out"
            )

    def missing(self, count: int) -> list[int]:
        """Which of the chunks 0 to `count` - 1 are not there yet, or are damaged."""
        return [number for number in range(count) if not _is_whole(self._path(number))]

    def save(self, number: int, images: np.ndarray) -> None:
        """Stores chunk `number`, whole or not at all. Raises RunError where the disk fails."""
        path = self._path(number)
        with disk_failures_told(path, self._safe), atomic_write(path) as scratch:
            _write_images(scratch, images)

    def images(self, count: int) -> Iterator[np.ndarray]:
        """The first `count` images, uint8 [B, H, W, C] a chunk."""
        number = 0
        while count > 0:
            chunk = np.load(self._path(number), allow_pickle=False)[:count]
            yield chunk
            number, count = number + 1, count - len(chunk)

    def merge(self, labels: np.ndarray) -> None:
        """Writes all images to `out` as `arr_0` uint8 [N, H, W, C], in the form of the ADM suite,
        beside `labels` [N] and the request; then removes the chunks. Holds one of them in memory at
        a time. Raises RunError where the disk fails: the chunks are kept."""
        with disk_failures_told(self._out, self._safe):
            self._write_whole(labels)
        self._unlock()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _write_whole(self, labels: np.ndarray) -> None:
        shape = (len(labels), *next(self.images(1)).shape[1:])
        # Of one name, so that the next run writes over the large file that a kill has left.
        scratch = self._out.with_name(f".{self._out.name}.tmp")
        with (
            atomic_write(self._out, scratch),
            zipfile.ZipFile(scratch, "w", allowZip64=True) as archive,
        ):
            with archive.open("arr_0.npy", "w", force_zip64=True) as file:
                header = {"descr": "|u1", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
                for chunk in self.images(len(labels)):
                    file.write(chunk.tobytes())
            with archive.open("labels.npy", "w") as file:
                np.save(file, labels, allow_pickle=False)
            with archive.open(REQUEST_FILE, "w") as file:
                file.write(self._request)

    def _safe(self) -> str:
        return f"finished chunks are safe in {self._directory}"

    def _unlock(self) -> None:
        if self._lock:
            self._lock.close()

    def _path(self, number: int) -> Path:
        return self._directory / f"{number:06d}.npy"


def _request_of(path: Path) -> bytes:
    """What the images at `path` were drawn for; nothing sensible of another file."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.read(REQUEST_FILE)
    except (OSError, KeyError, zipfile.BadZipFile):
        return b""


def _differing(there: bytes, asked: bytes) -> str:
    """What differs between two requests, in parentheses; nothing if the first is not one."""
    try:
        return f" ({', '.join(differences(json.loads(there), json.loads(asked)))})"
    except ValueError:
        return ""


def share(numbers: Sequence[int], index: int, count: int) -> list[int]:
    """The chunks that process `index` of `count` draws."""
    return list(numbers[index::count])


def _write_images(path: Path, images: np.ndarray) -> None:
    """As `np.save` does, which leaves it unsaid if the disk takes only the beginning."""
    descr = np.lib.format.dtype_to_descr(images.dtype)
    header = {"descr": descr, "fortran_order": False, "shape": images.shape}
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        file.write(images.tobytes())


def _is_whole(path: Path) -> bool:
    """Whether there are images uint8 [B, H, W, C] at `path`, and nothing cut off."""
    try:
        with open(path, "rb") as file:
            if np.lib.format.read_magic(file) != (1, 0):
                return False
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            size = file.tell() + math.prod(shape)
            return dtype == np.uint8 and len(shape) == 4 and os.fstat(file.fileno()).st_size == size
    except (OSError, ValueError, EOFError, tokenize.TokenError):
        return False
