"""Image files one by one, each with its class: in a folder, or in a TFDS data set."""

import contextlib
import io
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from sra_jax.core.errors import InputError
from sra_jax.data.crop import read_image
from sra_jax.data.loading import BadItemError, digest

TFDS_PREFIX = "tfds:"
# The endings that torchvision's ImageFolder takes, and GIF; files with others are ignored.
IMAGE_ENDINGS = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


class FolderImages:
    """Image files in a folder, as `LabelledImages`.

    Each directory in the folder is a class, in sorted order (the layout of ILSVRC's train folder).
    A folder without directories is one class. Hidden files are ignored.
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
        self.count = len(self._names)
        self.num_classes = max(len(classes), 1)
        self.identity = digest("\n".join(self._names).encode(errors="surrogateescape"))

    def read(self, index: int) -> tuple[Image.Image, int]:
        """See `LabelledImages`."""
        return read_image(self._folder / self._names[index]), int(self._labels[index])

    def name_of(self, index: int) -> str:
        """The path of image `index`."""
        return str(self._folder / self._names[index])


class TfdsImages:
    """The train split of a TFDS data set prepared as ArrayRecord, as `LabelledImages`.

    It needs no TensorFlow: images are decoded here, from the stored bytes. The features must hold
    an "image"; without a "label" there is one class.
    """

    def __init__(self, name: str, data_dir: str | None):
        """Opens `name` in `data_dir`. Raises InputError: it is not there, or holds no images."""
        import tensorflow_datasets as tfds  # takes a second to import

        try:
            with _only_errors(logging.getLogger("absl")):  # TFDS warns before it raises
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
        self.count = len(self._records)
        self.num_classes = label.num_classes if label else 1
        self.identity = f"{self._records.dataset_info.full_name} {self.count}"

    def read(self, index: int) -> tuple[Image.Image, int]:
        """See `LabelledImages`."""
        try:
            record = self._records[index]
        except Exception as error:  # of the C++ reader, and of the parser
            raise BadItemError(f"damaged record: {str(error).partition(';')[0]}") from error
        return read_image(io.BytesIO(record["image"])), int(record.get("label", 0))

    def name_of(self, index: int) -> str:
        """The data set, its version, and the number of the record."""
        return f"{self._records.dataset_info.full_name} train[{index}]"


@contextlib.contextmanager
def _only_errors(log: logging.Logger) -> Iterator[None]:
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def _class_names(folder: Path, name: str) -> list[str]:
    """Names of the images of class `name`, relative to `folder`."""
    names = [f"{name}/{found}" for found in _image_names(folder / name, deep=True)]
    if not names:
        raise InputError(
            f"class directory {folder / name} holds no images; fill or remove it (labels are the "
            "sorted order of the directories)"
        )
    return names


def _image_names(folder: Path, deep: bool) -> Iterator[str]:
    """Names of the image files in `folder`, relative to it, sorted; `deep`: at any depth."""
    for root, directories, files in os.walk(folder, followlinks=True):
        directories[:] = sorted(directories) if deep else []
        inside = os.path.relpath(root, folder)
        for name in sorted(files):
            if name.lower().endswith(IMAGE_ENDINGS) and not name.startswith("."):
                yield os.path.normpath(f"{inside}/{name}")
