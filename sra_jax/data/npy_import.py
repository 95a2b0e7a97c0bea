"""Imports latents encoded by the scripts of EDM2, REPA or the SRA authors, one file an image.

A folder, often called `vae-sd`, holds `00000/img-mean-std-00000000.npy` and so on, each float32
`[2c, h, w]`, mean then standard deviation of the posterior before scale and shift, and
`dataset.json`: `{"labels": [["00000/img-mean-std-00000000.npy", 3], ...]}`, or null for no labels.

REPA's and the SRA authors' scripts encode pixels in [-1, 1], as the VAE expects. EDM2's own script
(training/encoders.py) encodes pixels in [0, 1], and a model trained on such latents generates
images that decode to [0, 1]. The files do not tell which script wrote them.
"""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from sra_jax.codecs.sd_vae import SDVAECodec, VAEConfig
from sra_jax.core.errors import InputError
from sra_jax.data.loading import BadItemError, Loader, digest, why_unreadable
from sra_jax.data.records import Batch
from sra_jax.data.spec import MAX_CLASSES, LatentSpec

NPY_PREFIX = "npy:"
LABELS_FILE = "dataset.json"
READERS = 8  # threads; small files are limited by the disk's latency
BATCH = 256  # records


class NpyLatents:
    """The latents in a folder, as a `Producer` of `sra_jax.jobs.encode`.

    Attributes:
        spec: metadata of the new data set; scale and shift are those of SD-VAE.
        identity: a text that changes if the list of files or their labels change.
        records_per_item: 1.
    """

    records_per_item = 1

    def __init__(self, folder: Path, dtype: str, skip_bad: bool):
        """Lists `folder`.

        Args:
            folder: the folder that holds `dataset.json`.
            dtype: dtype of the stored moments, "float16" or "float32".
            skip_bad: leave out files that cannot be read, instead of refusing them.

        Raises:
            InputError: `dataset.json` cannot be read or lists other files, or the files do not
                hold square moments.
        """
        self._folder = folder
        labels = _read_labels(folder)
        self._names = sorted(labels)
        self._labels = np.array([labels[name] for name in self._names], np.int32)
        self._shape = self._first_shape()
        channels, height, width = self._shape
        vae = VAEConfig(latent_channels=channels // 2)
        self.spec = LatentSpec(
            codec=SDVAECodec.name,
            scale=vae.scale,
            shift=vae.shift,
            latent_shape=(height, width, vae.latent_channels),
            resolution=height * vae.downsampling,
            image_channels=vae.in_channels,
            num_classes=int(self._labels.max()) + 1,
            dtype=dtype,
            source=f"{NPY_PREFIX}{folder}",
        )
        self.identity = digest("\n".join(self._names).encode(), self._labels.tobytes())
        self._loader = Loader(self._read, self._name, BATCH, READERS, skip_bad)

    def __len__(self) -> int:
        return len(self._names)

    def batches(self, items: range, skipped: list[str]) -> Iterator[Batch]:
        """See `Producer`: moments float32 `[B, h, w, 2c]` and labels `[B]` of the files `items`."""
        return self._loader.batches(items, skipped)

    def _first_shape(self) -> tuple[int, ...]:
        """The shape of the first file that can be read; all others must have the same."""
        for name in self._names:
            with contextlib.suppress(BadItemError):
                shape = _load(self._folder / name).shape
                if len(shape) == 3 and shape[0] % 2 == 0 and shape[1] == shape[2]:
                    return shape
                raise self._wrong_shape(name, shape, "square moments [2c, h, h]")
        raise InputError(f"none of the {len(self._names)} .npy files in {self._folder} can be read")

    def _name(self, index: int) -> str:
        return str(self._folder / self._names[index])

    def _read(self, index: int) -> tuple[list[np.ndarray], int]:
        moments = _load(self._folder / self._names[index])
        if moments.shape != self._shape:
            expected = f"{self._shape} as in the files before it"
            raise self._wrong_shape(self._names[index], moments.shape, expected)
        return [moments.transpose(1, 2, 0)], int(self._labels[index])

    def _wrong_shape(self, name: str, shape: tuple[int, ...], expected: str) -> InputError:
        return InputError(
            f"{self._folder / name} has shape {shape}, expected {expected}: mean, then standard "
            "deviation on the first axis; import each resolution from its own folder"
        )


def _load(path: Path) -> np.ndarray:
    """The finite floating-point array at `path`. Raises BadItemError."""
    try:
        moments = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise BadItemError(f"unreadable: {why_unreadable(error)}") from error
    if not isinstance(moments, np.ndarray) or moments.dtype.kind != "f":
        raise BadItemError("not an array of floating-point numbers")
    if not np.isfinite(moments).all():
        raise BadItemError("values are not finite")
    return moments


def _read_labels(folder: Path) -> dict[str, int]:
    """The label of every .npy file in `folder`, by the file's name relative to it."""
    path, found = folder / LABELS_FILE, set(_npy_names(folder))
    try:
        entries = json.loads(path.read_text())["labels"]
        labels = dict.fromkeys(found, 0) if entries is None else dict(entries)
        for name, label in labels.items():
            if not isinstance(label, int) or not 0 <= label < MAX_CLASSES:
                raise ValueError(f"label {label!r} of {name} is no integer below {MAX_CLASSES}")
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"cannot read {path} ({error!r}), expected {{'labels': [['NAME.npy', 3], ...]}}; name "
            "the folder that holds it, often called vae-sd"
        ) from error
    if differing := sorted(map(str, labels.keys() ^ found)):
        raise InputError(
            f"{path} lists other files than {folder} holds: {differing[0]}, and {len(differing)} "
            "in all, are only in one of them; copy the folder again"
        )
    return labels


def _npy_names(folder: Path) -> Iterator[str]:
    for root, _, files in os.walk(folder, followlinks=True):
        inside = os.path.relpath(root, folder)
        for name in files:
            if name.endswith(".npy"):
                yield os.path.normpath(f"{inside}/{name}")
