"""Latents that EDM2, REPA and the SRA authors' scripts have encoded, a file for each image.

A folder, often called `vae-sd`, holds `00000/img-mean-std-00000000.npy` and so on, each float32
`[2c, h, w]`, mean then standard deviation of the posterior before scale and shift, and
`dataset.json`: `{"labels": [["00000/img-mean-std-00000000.npy", 3], ...]}`, or null for no labels.

REPA's and the SRA authors' scripts encode pixels in [-1, 1], as the VAE expects. EDM2's own
(training/encoders.py) encodes pixels in [0, 1]; what is trained on such latents decodes to [0, 1]
as well. The files look the same, so whoever imports them has to know.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sra_jax.codecs.sd_vae import SDVAECodec, VAEConfig
from sra_jax.core.errors import InputError
from sra_jax.data.loading import BadItemError, Loader, digest, why_unreadable
from sra_jax.data.records import Batch
from sra_jax.data.spec import MAX_CLASSES, LatentSpec

NPY_PREFIX = "npy:"
LABELS_FILE = "dataset.json"
READERS = 8  # threads: with small files it is the disk's latency that counts
BATCH = 256


class NpyLatents:
    """The latents of a folder, as batches for `ShardedSet.write`.

    Attributes:
        spec: metadata of the data set to be; scale and shift are those of SD-VAE.
        identity: differs between folders that list different files or labels.
        records_per_item: one.
    """

    records_per_item = 1

    def __init__(self, folder: Path, dtype: str, skip_bad: bool):
        """Lists `folder`.

        Args:
            folder: what holds `dataset.json`.
            dtype: to store, "float16" or "float32".
            skip_bad: leave out files that cannot be read, rather than refuse them.

        Raises:
            InputError: the folder or its `dataset.json` are not as they should be.
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
        """Moments float32 `[B, h, w, 2c]` and labels `[B]` of the files `items`.

        Adds the names of files left out to `skipped`.

        Raises:
            InputError: a file cannot be used; names it.
        """
        return self._loader.batches(items, skipped)

    def _first_shape(self) -> tuple[int, ...]:
        """Shape of the first file that can be read, which all others must have."""
        for name in self._names:
            try:
                shape = _load(self._folder / name).shape
            except BadItemError:
                continue
            if len(shape) != 3 or shape[0] % 2 or shape[1] != shape[2]:
                raise InputError(
                    f"{self._folder / name} has shape {shape}, expected square moments [2c, h, h]: "
                    "mean and standard deviation on the first axis"
                )
            return shape
        raise InputError(f"none of the {len(self._names)} files in {self._folder} can be read")

    def _name(self, index: int) -> str:
        return str(self._folder / self._names[index])

    def _read(self, index: int) -> tuple[list[np.ndarray], int]:
        moments = _load(self._folder / self._names[index])
        if moments.shape != self._shape:
            raise InputError(
                f"{self._name(index)} has shape {moments.shape}, the files before it "
                f"{self._shape}; import each resolution from a folder of its own"
            )
        return [moments.transpose(1, 2, 0)], int(self._labels[index])


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
    """Label of every .npy file in `folder`, by its name from there on."""
    path = folder / LABELS_FILE
    try:
        entries = json.loads(path.read_text())["labels"]
        labels = None if entries is None else dict(entries)
    except FileNotFoundError:
        raise InputError(
            f"{folder} holds no {LABELS_FILE}; name the folder that does, often called vae-sd"
        ) from None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"cannot read {path} ({error!r}), expected {{'labels': [['NAME.npy', 3], ...]}}"
        ) from error
    found = set(_npy_names(folder))
    if not found:
        raise InputError(f"{folder} holds no .npy files; check the path")
    if labels is None:
        return dict.fromkeys(found, 0)
    _check_labels(path, labels, found)
    return labels


def _check_labels(path: Path, labels: dict[str, Any], found: set[str]) -> None:
    if missing := sorted(labels.keys() - found):
        raise InputError(
            f"{path} lists {missing[0]}, and {len(missing)} in all, that are not there; copy the "
            "folder again"
        )
    if unlisted := sorted(found - labels.keys()):
        raise InputError(
            f"{path} has no label for {unlisted[0]}, nor for {len(unlisted)} files in all; add or "
            "move them"
        )
    for name, label in labels.items():
        if not isinstance(label, int) or not 0 <= label < MAX_CLASSES:
            raise InputError(
                f"{path} has label {label!r} for {name}, expected an integer from 0 to "
                f"{MAX_CLASSES - 1}; mend it"
            )


def _npy_names(folder: Path) -> Iterator[str]:
    for root, _, files in os.walk(folder, followlinks=True):
        inside = os.path.relpath(root, folder)
        for name in files:
            if name.endswith(".npy"):
                yield os.path.normpath(f"{inside}/{name}")
