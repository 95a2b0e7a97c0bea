"""Latent data sets on disk, in the format of tensorflow-datasets (ArrayRecord); no TensorFlow.

A record is `{"moments": [h, w, 2c], "label": int}`; the moments are mean and *standard deviation*
of the posterior, concatenated on channels. `metadata.json` beside the records is the `LatentSpec`.
TFDS reads the set too: `tfds.builder_from_directory(directory).as_data_source(split="train")`.
"""

import dataclasses
import glob
import importlib.metadata
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from sra_jax.core.errors import InputError
from sra_jax.core.shapes import FieldSpec
from sra_jax.data.record_files import (
    Feature,
    RecordFiles,
    array_feature,
    damaged,
    first_part,
    on_disk,
    parse_array,
    serialize,
    shard_name,
    write_records,
    write_tfds_metadata,
)
from sra_jax.data.side_sets import SideSet, open_side_set
from sra_jax.data.spec import FORMAT_VERSION, LatentSpec

Batch = tuple[np.ndarray, np.ndarray]
METADATA_FILE = "metadata.json"


class LatentSource:
    """Random access to the records of a latent data set and of its side sets.

    `open_records` makes it. Threads may share it.
    """

    def __init__(self, spec: LatentSpec, files: RecordFiles, sides: Sequence[SideSet] = ()):
        self.spec, self.files = spec, files.paths
        self._files, self._sides = files, sides

    def __len__(self) -> int:
        return len(self._files)

    def fingerprint(self) -> str:
        """A digest of the record files of all sets."""
        sides = [side.files for side in self._sides]
        return "+".join(files.fingerprint() for files in [self._files, *sides])

    def fields(self) -> dict[str, FieldSpec]:
        """The arrays of a record, by name."""
        fields = self.spec.fields()
        for side in self._sides:
            fields |= side.spec.fields
        return fields

    def read(self, indices: Sequence[int]) -> dict[str, np.ndarray]:
        """Reads the records at `indices`, at least one of them, in one parallel request a set.

        Returns:
            "moments": `[B, h, w, 2c]` of the stored dtype; "labels": int32 `[B]`; and the fields of
            the side sets, each `[B, ...]`.

        Raises:
            InputError: a record is damaged, or of another kind.
        """
        batch = self._files.read(indices, self._parse)
        for side in self._sides:
            batch |= side.read(indices)
        return batch

    def _parse(self, feature: Feature) -> dict[str, np.ndarray]:
        label = feature["label"].int64_list.value[0]
        if not 0 <= label < self.spec.num_classes:
            raise ValueError(f"label {label} of {self.spec.num_classes}")
        moments = parse_array(feature, "moments", self.spec.fields()["moments"])
        return {"moments": moments, "labels": np.int32(label)}


def open_records(directory: str | os.PathLike, *side_sets: str | os.PathLike) -> LatentSource:
    """Opens the latent data set at `directory`, and side sets that belong to it.

    Every record file is checked to be complete.

    Raises:
        InputError: there is no such directory, it is not on a disk, it holds no records or records
            of another kind, it was written by a newer version, one of its files is missing, damaged
            or cut short, or a side set was made for another set.
    """
    directory = on_disk(directory)
    spec = read_spec(directory)
    files = RecordFiles(directory)
    sides = [open_side_set(on_disk(side), files) for side in side_sets]
    names = [*spec.fields(), *(name for side in sides for name in side.spec.fields)]
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(f"field {twice[0]} is in two of the sets; leave one of the side sets out")
    return LatentSource(spec, files, sides)


def holds_latents(directory: str | os.PathLike) -> bool:
    """Whether `directory` holds a latent data set, of any version. Reads no record.

    Raises:
        InputError: its metadata are damaged, or `directory` is not on a disk.
    """
    return _metadata(on_disk(directory)) is not None


def write_latents(
    directory: str | os.PathLike, spec: LatentSpec, shards: Sequence[Iterable[Batch]]
) -> LatentSpec:
    """Writes a latent data set at `directory`, atomically: it appears whole or not at all.

    Args:
        directory: a path that does not exist yet, or an empty directory.
        spec: the metadata; the writer fills in the counts.
        shards: for each record file, the batches to write to it: moments `[B, h, w, 2c]` before
            scale and shift, and labels `[B]`. Lazy iterables keep one batch in memory at a time.

    Returns:
        The spec as stored.

    Raises:
        InputError: `directory` is taken or not on a disk, a batch does not fit the spec, or a shard
            is empty.
    """
    directory = on_disk(directory)
    taken = InputError(f"{directory} exists already; remove it or name another directory")
    if directory.is_file() or (directory.is_dir() and any(directory.iterdir())):
        raise taken
    prefix = f".{directory.name}.incomplete-"
    scratch = directory.with_name(prefix + uuid.uuid4().hex)
    scratch.mkdir(parents=True)
    try:
        spec = _write_all(scratch, spec, shards)
        try:
            scratch.rename(directory)
        except OSError as error:
            raise taken from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    # The set exists now, so no other writer can still finish one of these.
    for leftover in directory.parent.glob(f"{glob.escape(prefix)}*"):
        shutil.rmtree(leftover, ignore_errors=True)
    return spec


def write_shard(path: Path, spec: LatentSpec, batches: Iterable[Batch]) -> np.ndarray:
    """Writes one record file. The same batches make the same bytes.

    Returns:
        The number of records of each class, int64 `[num_classes]`.

    Raises:
        InputError: a batch does not fit the spec.
        OSError: the disk is full, or cannot be written to.
    """
    counts = np.zeros(spec.num_classes, np.int64)

    def examples() -> Iterator[bytes]:
        for moments, labels in batches:
            for row, label in zip(_checked(spec, moments, labels), labels, strict=True):
                yield serialize({"moments": row}, {"label": int(label)})
            counts[:] += np.bincount(labels, minlength=spec.num_classes)

    write_records(path, examples())
    return counts


def write_metadata(directory: Path, spec: LatentSpec, counts: np.ndarray) -> LatentSpec:
    """Writes the metadata that make the record files in `directory` a data set.

    Args:
        directory: holds all the record files.
        spec: the metadata; the counts and the tool's version are filled in here.
        counts: records of each class in each file, int64 `[files, num_classes]`.

    Returns:
        The spec as stored.
    """
    spec = dataclasses.replace(
        spec,
        num_examples=int(counts.sum()),
        class_counts=tuple(counts.sum(axis=0).tolist()),
        tool_version=tool_version(),
    )
    write_tfds_metadata(
        directory,
        _features(spec),
        counts.sum(axis=1).tolist(),
        dataclasses.asdict(spec),
    )
    return spec


def read_spec(directory: Path) -> LatentSpec:
    """Reads the metadata of the latent data set at `directory`, and no record.

    Raises:
        InputError: there is no such set, it is damaged, or a newer version wrote it.
    """
    if not directory.is_dir():
        found = f"{directory} is a file" if directory.exists() else f"no directory {directory}"
        raise InputError(f"{found}, expected the directory of a latent data set; check the path")
    if not (directory / "dataset_info.json").is_file():
        raise InputError(
            f"{directory} is a directory that holds no data set, expected one of latents; write "
            "it with sra-jax encode"
        )
    metadata = _metadata(directory)
    if metadata is None:
        raise InputError(
            f"{directory} holds a data set, but not of latents; encode it with sra-jax encode"
        )
    version = metadata["format_version"]
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise InputError(
            f"{directory} has format version {version}, expected at most {FORMAT_VERSION}; update "
            "sra_jax"
        )
    try:
        return LatentSpec(**metadata)
    except (TypeError, InputError) as error:
        raise damaged(directory / METADATA_FILE, first_part(error), directory) from error


def tool_version() -> str:
    """Version of the installed sra_jax; "unknown" if it is not installed."""
    installed = importlib.metadata.distributions(name="sra_jax")
    return next((distribution.version for distribution in installed), "unknown")


def _write_all(scratch: Path, spec: LatentSpec, shards: Sequence[Iterable[Batch]]) -> LatentSpec:
    counts = []
    for index, shard in enumerate(shards):
        name = shard_name(index, len(shards))
        counts.append(write_shard(scratch / name, spec, shard))
        if not counts[-1].any():
            raise InputError(f"no records for {name}, expected one or more; check the source")
    return write_metadata(scratch, spec, np.array(counts))


def _features(spec: LatentSpec) -> tfds.features.FeaturesDict:
    label = tfds.features.ClassLabel(num_classes=spec.num_classes)
    moments = array_feature(spec.fields()["moments"])
    return tfds.features.FeaturesDict({"moments": moments, "label": label})


def _checked(spec: LatentSpec, moments: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The moments in the stored dtype. Raises InputError if the batch does not fit the spec."""
    if moments.shape != (len(labels), *spec.moments_shape):
        raise InputError(
            f"moments of shape {moments.shape} for {len(labels)} labels, expected "
            f"{(len(labels), *spec.moments_shape)}: mean and standard deviation on channels"
        )
    with np.errstate(over="ignore"):
        stored = moments.astype(spec.dtype)
    if not np.isfinite(stored).all():
        raise InputError(f"moments are not finite in {spec.dtype}; check the codec, or use float32")
    if (lowest := stored[..., spec.latent_shape[2] :].min(initial=0)) < 0:
        raise InputError(
            f"standard deviation {lowest} in the second half of the channels, expected >= 0; "
            "a log-variance must be turned into exp(0.5 * logvar) first"
        )
    if (outside := labels[(labels < 0) | (labels >= spec.num_classes)]).size:
        raise InputError(
            f"label {outside[0]}, expected one in [0, {spec.num_classes}); check num_classes"
        )
    return stored


def _metadata(directory: Path) -> dict | None:
    """The metadata of the latent data set at `directory`; None if there is no such set.

    Raises InputError: they are damaged.
    """
    try:
        metadata = json.loads((directory / METADATA_FILE).read_text())
    except IsADirectoryError as error:
        raise damaged(directory / METADATA_FILE, "a directory", directory) from error
    except OSError:
        return None
    except ValueError as error:
        raise damaged(directory / METADATA_FILE, str(error), directory) from error
    return metadata if isinstance(metadata, dict) and "format_version" in metadata else None
