"""Where images come from: a tree of files, a TFDS data set, an array in a file."""

import contextlib
import io
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from sra_jax.core.errors import InputError
from sra_jax.data.crop import read_image
from sra_jax.data.embedded import EMBEDDED, EMBEDDED_NAMES
from sra_jax.data.loading import BadItemError, digest, why_unreadable
from sra_jax.data.spec import MAX_CLASSES

TFDS_PREFIX = "tfds:"
# What torchvision's ImageFolder takes, and GIF; other files in a tree are no images.
IMAGE_ENDINGS = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


class Source(Protocol):
    """Labelled images in a fixed order; threads may share it.

    Attributes:
        num_classes: labels lie in [0, num_classes).
        identity: differs between sources that differ in what they list, or in its order.
    """

    num_classes: int
    identity: str

    def __len__(self) -> int:
        """How many images there are."""

    def read(self, index: int) -> tuple[Image.Image, int]:
        """Image `index` in RGB, and its label. Raises BadItemError."""

    def name(self, index: int) -> str:
        """What a person calls image `index`."""


def open_source(text: str, data_dir: str | None = None) -> Source:
    """The images that `text` names.

    Args:
        text: `tfds:NAME`, a folder, an .npz file, or an embedded set (`embedded:digits`).
        data_dir: of TFDS; its own default if not given.

    Raises:
        InputError: there is no such source, or it holds no images.
    """
    if text.startswith(TFDS_PREFIX):
        return TfdsSource(text.removeprefix(TFDS_PREFIX), data_dir)
    if data_dir is not None:
        raise InputError(f"--data_dir is of tfds:NAME, but the source is {text!r}; leave it out")
    if text in EMBEDDED:
        return ArraySource(text, *EMBEDDED[text].load())
    if text.endswith(".npz"):
        return _open_npz(Path(text))
    if os.path.isdir(text):
        return FolderSource(Path(text))
    found = f"{text} is a file of another kind" if os.path.isfile(text) else f"no source {text!r}"
    raise InputError(
        f"{found}, expected tfds:NAME, a folder, a .npz file, npy:FOLDER or "
        f"{EMBEDDED_NAMES}; check the path"
    )


class FolderSource:
    """Image files in a folder: of each directory in it a class, in sorted order (the layout of
    ILSVRC's train folder), or all of one class where there are no directories.

    Hidden files are passed over.
    """

    def __init__(self, folder: Path):
        """Lists `folder`. Raises InputError: a class, or all of it, holds no images."""
        self._folder = folder
        with os.scandir(folder) as entries:
            classes = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
        loose = list(_image_names(folder, deep=not classes))
        if not classes:
            self._names, labels = loose, [0] * len(loose)
        elif loose:
            raise InputError(
                f"{folder} holds both class directories and images ({loose[0]}), expected only "
                "one of them; move the images into a class, or away"
            )
        else:
            listed = [_class_names(folder, name) for name in classes]
            self._names = [name for names in listed for name in names]
            labels = np.repeat(np.arange(len(classes)), [len(names) for names in listed])
        if not self._names:
            raise InputError(
                f"{folder} holds no images, expected {' '.join(IMAGE_ENDINGS)}; check the "
                "path, or use npy:FOLDER for latents"
            )
        self._labels = np.array(labels, np.int32)
        self.num_classes = max(len(classes), 1)
        self.identity = digest("\n".join(self._names).encode(errors="surrogateescape"))

    def __len__(self) -> int:
        return len(self._names)

    def read(self, index: int) -> tuple[Image.Image, int]:
        """See `Source`."""
        return read_image(self._folder / self._names[index]), int(self._labels[index])

    def name(self, index: int) -> str:
        """See `Source`: its path."""
        return str(self._folder / self._names[index])


class ArraySource:
    """Images in memory."""

    def __init__(self, what: str, images: np.ndarray, labels: np.ndarray | None):
        """Images uint8 `[N, H, W, C]` of one or three channels; integer labels `[N]`, or none.

        Raises:
            InputError: they are something else; `what` names them.
        """
        fits = images.dtype == np.uint8 and images.ndim == 4 and images.shape[3] in (1, 3)
        if not fits or not images.size:
            raise InputError(
                f"{what} holds {images.dtype} of shape {images.shape}, expected images uint8 "
                "[N, H, W, 3] or [N, H, W, 1]; convert them first"
            )
        if labels is None:
            labels = np.zeros(len(images), np.int32)
        if labels.shape != (len(images),) or labels.dtype.kind not in "iu" or labels.min() < 0:
            raise InputError(
                f"{what} holds labels {labels.dtype} of shape {labels.shape}, expected integers "
                f"of at least 0, one for each of the {len(images)} images; mend or remove them"
            )
        if (highest := int(labels.max())) >= MAX_CLASSES:
            raise InputError(
                f"{what} holds label {highest}, expected labels below {MAX_CLASSES}; renumber them "
                "from 0 on"
            )
        self._what, self._images, self._labels = what, images, labels
        self.num_classes = highest + 1
        self.identity = digest(str(images.shape).encode(), images[0].tobytes(), labels.tobytes())

    def __len__(self) -> int:
        return len(self._images)

    def read(self, index: int) -> tuple[Image.Image, int]:
        """See `Source`."""
        pixels = np.broadcast_to(self._images[index], (*self._images.shape[1:3], 3))
        return Image.fromarray(np.ascontiguousarray(pixels)), int(self._labels[index])

    def name(self, index: int) -> str:
        """See `Source`."""
        return f"{self._what}[{index}]"


class TfdsSource:
    """The train split of a TFDS data set that lies prepared as ArrayRecord; no TensorFlow.

    Its features must hold an "image"; without a "label" it is of one class. Images are decoded
    here, from the stored bytes, as those of a folder are.
    """

    def __init__(self, name: str, data_dir: str | None):
        """Opens `name` in `data_dir`. Raises InputError: it is not there, or holds no images."""
        import tensorflow_datasets as tfds  # a second, and only this source needs it

        try:
            with _only_errors(logging.getLogger("absl")):  # TFDS warns of what is an error here
                self._records = tfds.data_source(
                    name,
                    split="train",
                    data_dir=data_dir,
                    download=False,
                    decoders={"image": tfds.decode.SkipDecoding()},
                )
            features = dict(self._records.dataset_info.features.items())
        except Exception as error:  # of a dozen kinds, with pages of advice
            reason = str(error).partition("\n")[0].partition(". ")[0] or type(error).__name__
            raise InputError(
                f"cannot open tfds:{name} in {data_dir or 'the default --data_dir'} ({reason}); "
                "prepare it there with file_format=array_record"
            ) from error
        if not isinstance(features.get("image"), tfds.features.Image):
            raise InputError(
                f"tfds:{name} has the features {', '.join(features)}, expected an image called "
                "'image'; choose another data set"
            )
        label = features.get("label")
        self.num_classes = label.num_classes if label else 1
        self.identity = f"{self._records.dataset_info.full_name} {len(self._records)}"

    def __len__(self) -> int:
        return len(self._records)

    def read(self, index: int) -> tuple[Image.Image, int]:
        """See `Source`."""
        try:
            record = self._records[index]
        except Exception as error:  # the C++ reader's, and the parser's
            raise BadItemError(f"damaged record: {str(error).partition(';')[0]}") from error
        return read_image(io.BytesIO(record["image"])), int(record.get("label", 0))

    def name(self, index: int) -> str:
        """See `Source`."""
        return f"{self._records.dataset_info.full_name} train[{index}]"


def _open_npz(path: Path) -> ArraySource:
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            raise InputError(
                f"{path} holds a single array, as an .npy does, expected an .npz; write it with "
                "np.savez(PATH, images=IMAGES, labels=LABELS)"
            )
        with loaded as arrays:
            key = "images" if "images" in arrays else "arr_0"
            if key not in arrays:
                raise InputError(
                    f"{path} holds {', '.join(arrays) or 'nothing'}, expected images uint8 "
                    "[N, H, W, 3] called arr_0 or images; rename them"
                )
            return ArraySource(path.name, arrays[key], arrays.get("labels"))
    except InputError:
        raise
    except Exception as error:  # zip, header and value errors alike
        raise InputError(
            f"cannot read {path} as an .npz of images ({why_unreadable(error)}); check the file"
        ) from error


@contextlib.contextmanager
def _only_errors(log: logging.Logger) -> Iterator[None]:
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def _class_names(folder: Path, name: str) -> list[str]:
    """Names of the images of class `name`, from `folder` on."""
    names = [f"{name}/{found}" for found in _image_names(folder / name, deep=True)]
    if not names:
        raise InputError(
            f"class directory {folder / name} holds no images; fill or remove it (labels are the "
            "sorted order of the directories)"
        )
    return names


def _image_names(folder: Path, deep: bool) -> Iterator[str]:
    """Names of the image files in `folder`, from there on, sorted; `deep`: at any depth."""
    for root, directories, files in os.walk(folder, followlinks=True):
        directories[:] = sorted(directories) if deep else []
        inside = os.path.relpath(root, folder)
        for name in sorted(files):
            if name.lower().endswith(IMAGE_ENDINGS) and not name.startswith("."):
                yield os.path.normpath(f"{inside}/{name}")
