"""Samples on disk while they are being drawn: one file a chunk, so that nothing is drawn twice."""

import json
import os
import shutil
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sra_jax.errors import InputError

REQUEST_FILE = "request.json"


class PartStore:
    """Finished chunks of images beside the file that they will become, `out`.parts.

    Raises:
      InputError: the chunks there belong to another `request`.
    """

    def __init__(self, out: Path, request: Mapping[str, Any]):
        self._out = out
        self._directory = out.with_name(f"{out.name}.parts")
        self._directory.mkdir(parents=True, exist_ok=True)
        path, text = self._directory / REQUEST_FILE, json.dumps(request, sort_keys=True)
        if not path.exists():
            _write(path, lambda file: file.write(text.encode()))
        elif path.read_text() != text:
            raise InputError(
                f"{self._directory} holds parts of another request; repeat that one, remove the "
                "directory, or choose another --out"
            )

    def missing(self, count: int) -> list[int]:
        """Which of the chunks 0 to `count` - 1 are not there yet."""
        return [number for number in range(count) if not self._path(number).exists()]

    def save(self, number: int, images: np.ndarray) -> None:
        """Stores chunk `number`, whole or not at all."""
        _write(self._path(number), lambda file: np.save(file, images, allow_pickle=False))

    def images(self, count: int) -> Iterator[np.ndarray]:
        """The first `count` images, uint8 [B, H, W, C] a chunk."""
        number = 0
        while count > 0:
            chunk = np.load(self._path(number), allow_pickle=False)[:count]
            yield chunk
            number, count = number + 1, count - len(chunk)

    def merge(self, labels: np.ndarray) -> None:
        """Writes all images to `out` as `arr_0` uint8 [N, H, W, C], in the form of the ADM suite,
        beside `labels` [N]; then removes the chunks. Holds one of them in memory at a time."""
        shape = (len(labels), *next(self.images(1)).shape[1:])
        scratch = self._out.with_name(f".{self._out.name}.tmp")
        with zipfile.ZipFile(scratch, "w", allowZip64=True) as archive:
            with archive.open("arr_0.npy", "w", force_zip64=True) as file:
                header = {"descr": "|u1", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
                for chunk in self.images(len(labels)):
                    file.write(chunk.tobytes())
            with archive.open("labels.npy", "w") as file:
                np.save(file, labels, allow_pickle=False)
        os.replace(scratch, self._out)
        shutil.rmtree(self._directory)

    def _path(self, number: int) -> Path:
        return self._directory / f"{number:06d}.npy"


def share(numbers: Sequence[int], index: int, count: int) -> list[int]:
    """The chunks that process `index` of `count` draws."""
    return list(numbers[index::count])


def _write(path: Path, write) -> None:
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(scratch, "wb") as file:
        write(file)
    os.replace(scratch, path)
