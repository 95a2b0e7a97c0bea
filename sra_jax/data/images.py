"""Opens images by name: a folder, a TFDS data set, an .npz file or an embedded data set.

`open_labelled_images` reads images of any size one by one, each with its class, to encode them.
`open_images` reads images of one size in chunks, a few in memory at a time, to compute metrics.
"""

import io
import math
import os
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

import numpy as np
from PIL import Image

from sra_jax.core.errors import InputError
from sra_jax.data.embedded import EMBEDDED, EMBEDDED_NAMES
from sra_jax.data.image_files import TFDS_PREFIX, FolderImages, TfdsImages
from sra_jax.data.loading import BadItemError, digest, map_ahead, why_unreadable
from sra_jax.data.spec import MAX_CLASSES

IMAGES = "arr_0"  # name of the images in an .npz
CHUNK = 64  # images in a chunk
READERS = 8  # threads that read image files for metrics
# Errors raised by reading an .npz that is damaged, of another kind, or holds other arrays.
# RuntimeError is zipfile's for an encrypted file, and for one of an unknown version.
BROKEN = (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)


class LabelledImages(Protocol):
    """Labelled images in a fixed order. Threads may share it.

    Attributes:
        count: number of images.
        num_classes: labels lie in [0, num_classes).
        identity: a text that changes if the list of images or its order changes.
    """

    count: int
    num_classes: int
    identity: str

    def read(self, index: int) -> tuple[Image.Image, int]:
        """Image `index` in RGB, and its label. Raises BadItemError."""

    def name_of(self, index: int) -> str:
        """The name of image `index` in messages."""


class ImageSet(Protocol):
    """Two or more images of one size, in a fixed order.

    Attributes:
        name: the set's name in messages.
        count: number of images.
        resolution: their height and width, in pixels.
    """

    name: str
    count: int
    resolution: tuple[int, int]

    def chunks(self, first: int, last: int) -> Iterator[np.ndarray]:
        """Images `first` to `last` - 1 in order, as chunks uint8 `[any, H, W, 3]`.

        Raises InputError.
        """


def open_labelled_images(name: str, data_dir: str | None = None) -> LabelledImages:
    """Opens images to encode.

    Args:
        name: `tfds:NAME`, a folder, an .npz with `arr_0` or `images` (and perhaps `labels`), or an
            embedded set (`embedded:digits`).
        data_dir: TFDS's directory; TFDS's own default if None.

    Raises:
        InputError: there is no such thing, it holds no images, or its labels do not fit.
    """
    if name.startswith(TFDS_PREFIX):
        return TfdsImages(name.removeprefix(TFDS_PREFIX), data_dir)
    if data_dir is not None:
        raise InputError(f"--data_dir is of {TFDS_PREFIX}NAME, but the images are {name!r}")
    if name in EMBEDDED:
        return ArrayImages(name, *EMBEDDED[name].load())
    if os.path.isdir(name):
        return FolderImages(Path(name))
    places = f"{TFDS_PREFIX}NAME, a folder of images, an .npz or {EMBEDDED_NAMES}"
    return ArrayImages(name, *_load_npz(name, ("images", IMAGES), places))


def open_images(path: str) -> ImageSet:
    """Opens images to compute metrics of: an .npz with `arr_0`, a folder, tfds:NAME or an embedded
    set.

    Raises:
        InputError: there is no such thing, or it does not hold two images of one size.
    """
    if os.path.isfile(path):
        return NpzImages(Path(path))
    images = open_labelled_images(path)
    return images if isinstance(images, ArrayImages) else UniformImages(path, images)


def load_labelled(path: str) -> tuple[np.ndarray, np.ndarray]:
    """Loads labelled images into memory, to train a classifier on.

    Args:
        path: an .npz with `arr_0` and `labels`, or an embedded set.

    Returns:
        Images uint8 `[N, H, W, C]` with C 1 or 3, and integer labels `[N]`.

    Raises:
        InputError: there is no such file, or it holds something else.
    """
    if path in EMBEDDED:
        return EMBEDDED[path].load()
    wanted = f"an .npz with {IMAGES} and labels, {EMBEDDED_NAMES}"
    images, labels = _load_npz(path, (IMAGES,), wanted)
    if labels is None:
        raise InputError(f"{path} holds no labels, expected {wanted}; choose another file")
    found = ArrayImages(path, images, labels)
    return found.images, found.labels


def batches(chunks: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """Joins chunks `[any, ...]` and cuts them into batches `[size, ...]`; the last may be short."""
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
    """Images in memory, as `LabelledImages` and as an `ImageSet`."""

    def __init__(self, name: str, images: np.ndarray, labels: np.ndarray | None = None):
        """Checks the arrays.

        Args:
            name: the set's name in messages.
            images: uint8 `[N, H, W, C]` with C 1 or 3.
            labels: integers `[N]`; all 0 if None.

        Raises:
            InputError: the arrays are something else.
        """
        _check_images(name, images.dtype, images.shape)
        self.name, self.count, self.resolution = name, len(images), images.shape[1:3]
        labels = np.zeros(self.count, np.int32) if labels is None else labels
        fits = labels.shape == (self.count,) and labels.dtype.kind in "iu"
        if not fits or labels.min() < 0 or labels.max() >= MAX_CLASSES:
            bounds = f" from {labels.min()} to {labels.max()}" if fits else ""
            raise InputError(
                f"{name} holds {labels.size} labels {labels.dtype}{bounds}, expected integers, at "
                f"least 0 and below {MAX_CLASSES}, for {self.count} images; mend or remove them"
            )
        self.num_classes = int(labels.max()) + 1
        self.identity = digest(str(images.shape).encode(), images[0].tobytes(), labels.tobytes())
        self.images, self.labels = images, labels

    def read(self, index: int) -> tuple[Image.Image, int]:
        """See `LabelledImages`."""
        pixels = in_colour(self.images[index : index + 1])[0]
        return Image.fromarray(np.ascontiguousarray(pixels)), int(self.labels[index])

    def name_of(self, index: int) -> str:
        """See `LabelledImages`."""
        return f"{self.name}[{index}]"

    def chunks(self, first: int, last: int) -> Iterator[np.ndarray]:
        """See `ImageSet`."""
        for start in range(first, last, CHUNK):
            yield in_colour(self.images[start : min(start + CHUNK, last)])


class NpzImages:
    """Images `arr_0`, uint8 `[N, H, W, C]`, of an .npz, read piece by piece: an `ImageSet`."""

    def __init__(self, path: Path):
        """Reads the header of `arr_0`. Raises InputError: it is missing or of another form."""
        self._path = path
        try:
            with zipfile.ZipFile(path) as archive, archive.open(f"{IMAGES}.npy") as file:
                header = _read_header(file)
        except BROKEN as error:
            raise _not_npz(path, IMAGES, error) from None
        if header.fortran_order:
            raise InputError(f"{path} holds {IMAGES} in Fortran order; save it in C order")
        _check_images(str(path), header.dtype, header.shape)
        self.name, self.count, self.resolution = str(path), header.shape[0], header.shape[1:3]
        _check_count(self)
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


class UniformImages:
    """Labelled images that are all of one size, read ahead by threads: an `ImageSet`."""

    def __init__(self, name: str, images: LabelledImages):
        """Reads the first image. Raises InputError: it cannot be used, or is the only one."""
        self._images = images
        self.name, self.count = name, images.count
        _check_count(self)
        self.resolution = self._read(0).shape[:2]

    def chunks(self, first: int, last: int) -> Iterator[np.ndarray]:
        """See `ImageSet`."""
        wanted = range(first, last)
        with ThreadPoolExecutor(READERS) as pool:
            images = map_ahead(pool, self._read, wanted, CHUNK)
            for number, image in zip(wanted, images, strict=True):
                if image.shape[:2] != self.resolution:
                    raise InputError(
                        f"{self._images.name_of(number)} is {describe_size(image.shape)}, the "
                        f"first image in {self.name} {describe_size(self.resolution)}; crop them "
                        "to one size"
                    )
                yield image[None]

    def _read(self, index: int) -> np.ndarray:
        try:
            return np.asarray(self._images.read(index)[0])
        except BadItemError as error:
            raise InputError(
                f"cannot use {self._images.name_of(index)} ({error}); mend or remove it"
            ) from None


def describe_size(shape: tuple[int, ...]) -> str:
    """Height and width, the first two of `shape`, as people write them: "256x256"."""
    return "x".join(map(str, shape[:2]))


def in_colour(images: np.ndarray) -> np.ndarray:
    """Turns `[B, H, W, 1]` or `[B, H, W, 3]` into `[B, H, W, 3]`."""
    return np.broadcast_to(images, (*images.shape[:3], 3))


class _Header(NamedTuple):
    shape: tuple[int, ...]
    fortran_order: bool
    dtype: np.dtype


def _read_header(file: BinaryIO) -> _Header:
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return _Header(*np.lib.format.read_array_header_1_0(file))
    return _Header(*np.lib.format.read_array_header_2_0(file))


def _load_npz(
    path: str, names: tuple[str, ...], expected: str
) -> tuple[np.ndarray, np.ndarray | None]:
    """Loads from an .npz the first array of `names` that it holds, and `labels` if it has them."""
    if not os.path.isfile(path):
        found = f"{path} is a directory" if os.path.isdir(path) else f"no file or folder {path}"
        raise InputError(f"{found}, expected {expected}; check the path")
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            raise ValueError("it is a .npy, a single array")
        with loaded as arrays:
            name = next((name for name in names if name in arrays), names[-1])
            return arrays[name], arrays.get("labels")
    except Exception as error:  # those of BROKEN, and of memory for a damaged shape
        raise _not_npz(path, " or ".join(reversed(names)), error) from None


def _not_npz(path: str | os.PathLike, names: str, error: Exception) -> InputError:
    return InputError(
        f"{path} is not an .npz with {names} ({why_unreadable(error)}); write one with np.savez, "
        "or name a folder of images"
    )


def _check_images(name: str, dtype: np.dtype, shape: tuple[int, ...]) -> None:
    if dtype != np.uint8 or len(shape) != 4 or shape[3] not in (1, 3) or 0 in shape:
        raise InputError(
            f"{name} holds images {dtype} {shape}, expected uint8 [N, H, W, 3] or [N, H, W, 1]; "
            "convert them"
        )


def _check_count(images: ImageSet) -> None:
    if images.count < 2:
        raise InputError(f"{images.name} holds {images.count} images, expected at least 2")
