"""Sets of images to measure: from a file or a folder, of any number, a few in memory at a time."""

import io
import math
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

import numpy as np

from sra_jax.core.errors import InputError
from sra_jax.data.embedded import EMBEDDED, EMBEDDED_NAMES
from sra_jax.data.image_sources import TFDS_PREFIX, open_source
from sra_jax.data.loading import BadItemError, map_ahead, why_unreadable

IMAGES = "arr_0"
CHUNK = 64
READERS = 8
# What reading a file raises that is damaged, or no .npz, or holds other arrays.
BROKEN = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)


class ImageSet(Protocol):
    """Two or more images of one size, in a fixed order.

    Attributes:
        name: what a person calls the set.
        count: how many images there are.
        resolution: their height and width.
    """

    name: str
    count: int
    resolution: tuple[int, int]

    def chunks(self, first: int, last: int) -> Iterator[np.ndarray]:
        """Images `first` to `last` - 1, uint8 [B, H, W, 3], as many at a time as suits the set.

        Raises InputError.
        """


def open_images(path: str) -> ImageSet:
    """The images that `path` names: an .npz with `arr_0`, a folder, tfds:NAME or an embedded set.

    Raises:
      InputError: there is no such thing, or it does not hold two images of one size.
    """
    if path in EMBEDDED:
        return ArrayImages(path, EMBEDDED[path].load()[0])
    if Path(path).is_dir() or path.startswith(TFDS_PREFIX):
        return SourceImages(path)
    if not Path(path).is_file():
        raise InputError(
            f"no file {path}; expected an .npz, a folder of images, {TFDS_PREFIX}NAME, "
            f"{EMBEDDED_NAMES}: check the path"
        )
    return NpzImages(Path(path))


def load_labelled(path: str) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [N, H, W, C] and labels [N] of an .npz, or an embedded set.

    Raises:
      InputError: no such file, or not of that form.
    """
    if path in EMBEDDED:
        return EMBEDDED[path].load()
    if not Path(path).is_file():
        found = f"{path} is a directory" if Path(path).is_dir() else f"no file {path}"
        raise InputError(
            f"{found}, expected an .npz with {IMAGES} and labels, {EMBEDDED_NAMES}, to measure "
            "without --inception; write it with sra_jax.cli.sample, or check the path"
        )
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            raise ValueError("it is a .npy, a single array")
        with loaded as arrays:
            images, labels = arrays[IMAGES], arrays["labels"]
    except BROKEN as error:
        raise InputError(
            f"{path} is not an .npz with {IMAGES} and labels ({why_unreadable(error)}); write one "
            "with sra_jax.cli.sample, or check the path"
        ) from None
    if images.dtype != np.uint8 or images.ndim != 4 or labels.shape != images.shape[:1]:
        raise InputError(
            f"{path} holds {IMAGES} {images.dtype} {images.shape} and labels {labels.shape}, "
            "expected uint8 [N, H, W, C] and [N]"
        )
    if len(images) < 2:
        raise InputError(f"{path} holds {len(images)} images, expected at least 2")
    if labels.dtype.kind not in "iu":
        raise InputError(f"{path} holds labels {labels.dtype}, expected integers; convert them")
    return images, labels


def batches(chunks: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """What the chunks [any, ...] hold, in order, `size` at a time; the last may be short."""
    held, count = [], 0
    for chunk in chunks:
        held.append(chunk)
        count += len(chunk)
        while count >= size:
            joined = np.concatenate(held)
            yield joined[:size]
            held, count = [joined[size:]], count - size
    if count:
        yield np.concatenate(held)


class ArrayImages:
    """Images uint8 [N, H, W, C] in memory, of one or three channels."""

    def __init__(self, name: str, images: np.ndarray):
        _check(name, images.dtype, images.shape)
        self.name, self.count, self.resolution = name, len(images), images.shape[1:3]
        self.images = images

    def chunks(self, first: int, last: int) -> Iterator[np.ndarray]:
        """See `ImageSet`."""
        for start in range(first, last, CHUNK):
            yield in_colour(self.images[start : min(start + CHUNK, last)])


class NpzImages:
    """Images `arr_0`, uint8 [N, H, W, C], of an .npz, read piece by piece."""

    def __init__(self, path: Path):
        """Reads the header of `arr_0`. Raises InputError: it is missing or of another form."""
        self._path = path
        try:
            with zipfile.ZipFile(path) as archive, archive.open(f"{IMAGES}.npy") as file:
                header = _read_header(file)
        except BROKEN as error:
            raise InputError(
                f"{path} is not an .npz with {IMAGES} ({why_unreadable(error)}); name one, or a "
                "folder of images"
            ) from None
        if header.fortran_order:
            raise InputError(f"{path} holds {IMAGES} in Fortran order; save it in C order")
        _check(str(path), header.dtype, header.shape)
        self.name, self.count, self.resolution = str(path), header.shape[0], header.shape[1:3]
        self._shape = header.shape[1:]

    def chunks(self, first: int, last: int) -> Iterator[np.ndarray]:
        """See `ImageSet`."""
        try:
            with zipfile.ZipFile(self._path) as archive, archive.open(f"{IMAGES}.npy") as file:
                _read_header(file)
                file.seek(first * math.prod(self._shape), io.SEEK_CUR)
                for start in range(first, last, CHUNK):
                    shape = (min(CHUNK, last - start), *self._shape)
                    data = file.read(math.prod(shape))
                    yield in_colour(np.frombuffer(data, np.uint8).reshape(shape))
        except BROKEN as error:
            raise InputError(
                f"{self._path} is damaged ({why_unreadable(error)}); write it again"
            ) from None


class SourceImages:
    """The images of a data set or a folder, in their order."""

    def __init__(self, name: str):
        """Opens what `name` names. Raises InputError: it does not hold two images."""
        self._source = open_source(name)
        self.name, self.count = name, len(self._source)
        height, width, _ = self._read(0).shape
        self.resolution = height, width
        _check(self.name, np.dtype(np.uint8), (self.count, height, width, 3))

    def chunks(self, first: int, last: int) -> Iterator[np.ndarray]:
        """See `ImageSet`."""
        wanted = range(first, last)
        with ThreadPoolExecutor(READERS) as pool:
            images = map_ahead(pool, self._read, wanted, CHUNK)
            for number, image in zip(wanted, images, strict=True):
                if image.shape[:2] != self.resolution:
                    found, first = describe_size(image.shape), describe_size(self.resolution)
                    raise InputError(
                        f"{self._source.name(number)} is {found}, the first image in {self.name} "
                        f"{first}; crop them to one size"
                    )
                yield image[None]

    def _read(self, index: int) -> np.ndarray:
        try:
            return np.asarray(self._source.read(index)[0])
        except BadItemError as error:
            raise InputError(
                f"cannot use {self._source.name(index)} ({error}); mend or remove it"
            ) from None


def describe_size(shape: tuple[int, ...]) -> str:
    """Height and width, the first two of `shape`, as people write them: "256x256"."""
    return "x".join(map(str, shape[:2]))


class _Header(NamedTuple):
    shape: tuple[int, ...]
    fortran_order: bool
    dtype: np.dtype


def _read_header(file: BinaryIO) -> _Header:
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return _Header(*np.lib.format.read_array_header_1_0(file))
    return _Header(*np.lib.format.read_array_header_2_0(file))


def _check(name: str, dtype: np.dtype, shape: tuple[int, ...]) -> None:
    if dtype != np.uint8 or len(shape) != 4 or shape[3] not in (1, 3):
        raise InputError(
            f"{name} holds {IMAGES} {dtype} {shape}, expected uint8 [N, H, W, 3] or [N, H, W, 1]; "
            "convert it"
        )
    if shape[0] < 2:
        raise InputError(f"{name} holds {shape[0]} images, expected at least 2")


def in_colour(images: np.ndarray) -> np.ndarray:
    """[B, H, W, 1] or [B, H, W, 3] -> [B, H, W, 3]."""
    return np.broadcast_to(images, (*images.shape[:3], 3))
