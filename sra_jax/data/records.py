"""Latent data sets on disk, in the format of tensorflow-datasets (ArrayRecord); no TensorFlow.

A record is `{"moments": [h, w, 2c], "label": int}`; the moments are mean and *standard deviation*
of the posterior, concatenated on channels. `metadata.json` beside the records is the `LatentSpec`.
TFDS reads the set too: `tfds.builder_from_directory(directory).as_data_source(split="train")`.
"""

import contextlib
import dataclasses
import glob
import importlib.metadata
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from google.protobuf.message import DecodeError
from tensorflow_datasets.proto import tf_example_pb2

from sra_jax.core.errors import InputError
from sra_jax.core.files import in_bucket
from sra_jax.data.spec import FORMAT_VERSION, LatentSpec

Batch = tuple[np.ndarray, np.ndarray]
METADATA_FILE = "metadata.json"


class LatentSource:
    """Random access to the records of a latent data set. `open_latents` makes it.

    Threads may share it.
    """

    def __init__(self, spec: LatentSpec, builder: tfds.core.DatasetBuilder):
        self.spec = spec
        self._split = builder.info.splits["train"]
        self._records = builder.as_data_source(split="train").data_source

    def __len__(self) -> int:
        return len(self._records)

    @property
    def files(self) -> list[Path]:
        """The record files."""
        return [Path(path) for path in self._split.filepaths]

    def read(self, indices: Sequence[int]) -> dict[str, np.ndarray]:
        """Reads the records at `indices`, at least one of them, in one parallel request.

        Returns:
            "moments": `[B, h, w, 2c]` of the stored dtype; "labels": int32 `[B]`.

        Raises:
            InputError: a record is damaged, or of another kind.
        """
        try:
            records = self._records.__getitems__(indices)
        except RuntimeError as error:  # the C++ reader found a wrong checksum
            raise self._find_damage(indices) from error
        moments = np.empty((len(records), *self.spec.moments_shape), self.spec.dtype)
        labels = np.empty(len(records), np.int32)
        # Parsed here, because TFDS's decoder takes ten times as long as all the rest.
        try:
            for row, record in enumerate(records):
                feature = tf_example_pb2.Example.FromString(record).features.feature
                stored = np.frombuffer(feature["moments"].bytes_list.value[0], self.spec.dtype)
                moments[row] = stored.reshape(self.spec.moments_shape)
                labels[row] = label = feature["label"].int64_list.value[0]
                if not 0 <= label < self.spec.num_classes:
                    raise ValueError(f"label {label} of {self.spec.num_classes}")
        except (DecodeError, IndexError, ValueError, OverflowError) as error:
            index = indices[row]
            reason = f"record {index} is of another kind: {_first_part(error)}"
            raise _damaged(self._file(index), reason) from error
        return {"moments": moments, "labels": labels}

    def _file(self, index: int) -> Path:
        """The record file that holds the record at `index`."""
        ends = np.cumsum(self._split.shard_lengths)
        return self.files[np.searchsorted(ends, index, side="right")]

    def _find_damage(self, indices: Sequence[int]) -> InputError:
        """The error that names the damaged file among those that hold `indices`."""
        for index in indices:
            try:
                self._records[index]
            except RuntimeError as error:
                return _damaged(self._file(index), _first_part(error))
        return InputError(f"a read from {self._split.filepaths[0].parent} failed once; try again")


def open_latents(directory: str | os.PathLike) -> LatentSource:
    """Opens the latent data set at `directory`, after checking that every record file is complete.

    Raises:
        InputError: there is no such directory, it is not on a disk, it holds no records or records
            of another kind, it was written by a newer version, or one of its files is missing,
            damaged or cut short.
    """
    directory = _on_disk(directory)
    spec = read_spec(directory)
    try:
        builder = tfds.builder_from_directory(directory)
        split = builder.info.splits["train"]
        shards = list(zip(split.filepaths, split.shard_lengths, strict=True))
    except Exception as error:  # of a dozen kinds, of parsers and of TFDS
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        path = directory / "dataset_info.json or features.json"
        raise _damaged(path, reason, directory) from error
    for path, length in shards:
        _check_shard(path, length)
    return LatentSource(spec, builder)


def holds_latents(directory: str | os.PathLike) -> bool:
    """Whether `directory` holds a latent data set, of any version. Reads no record.

    Raises:
        InputError: its metadata are damaged, or `directory` is not on a disk.
    """
    return _metadata(_on_disk(directory)) is not None


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
    directory = _on_disk(directory)
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


def shard_name(index: int, count: int) -> str:
    """File name of record file `index` of `count`."""
    return f"latents-train.array_record-{index:05d}-of-{count:05d}"


def write_shard(path: Path, spec: LatentSpec, batches: Iterable[Batch]) -> np.ndarray:
    """Writes one record file. The same batches make the same bytes.

    Returns:
        The number of records of each class, int64 `[num_classes]`.

    Raises:
        InputError: a batch does not fit the spec.
        OSError: the disk is full, or cannot be written to.
    """
    counts = np.zeros(spec.num_classes, np.int64)
    # One record a group, for random access. Not compressed, because latents are mostly noise.
    options = "group_size:1,uncompressed"
    writer = _on_file(array_record_module.ArrayRecordWriter, str(path), options)
    try:
        for moments, labels in batches:
            moments = _checked(spec, moments, labels)
            for row, label in zip(moments, labels, strict=True):
                _on_file(writer.write, _serialize(row, int(label)))
            counts += np.bincount(labels, minlength=spec.num_classes)
    except BaseException:
        with contextlib.suppress(RuntimeError):  # the first error is the one to report
            writer.close()
        raise
    _on_file(writer.close)
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
    paths = [directory / shard_name(index, len(counts)) for index in range(len(counts))]
    split = tfds.core.SplitInfo(
        name="train",
        shard_lengths=counts.sum(axis=1).tolist(),
        num_bytes=sum(path.stat().st_size for path in paths),
    )
    tfds.folder_dataset.write_metadata(
        data_dir=directory,
        features=_features(spec),
        split_infos=[split],
        check_data=False,  # it would read through TensorFlow
        metadata=tfds.core.MetadataDict(dataclasses.asdict(spec)),
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
        raise _damaged(directory / METADATA_FILE, _first_part(error), directory) from error


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


def _on_file(call: Callable[..., Any], *arguments: Any) -> Any:
    """Calls the C++ writer. Raises OSError if it fails."""
    try:
        return call(*arguments)
    except RuntimeError as error:
        raise OSError(_first_part(error)) from error


def _serialize(moments: np.ndarray, label: int) -> bytes:
    """The bytes of one record, as TFDS encodes it, but faster and in a fixed order of fields."""
    example = tf_example_pb2.Example()
    feature = example.features.feature
    feature["moments"].bytes_list.value.append(moments.tobytes())
    feature["label"].int64_list.value.append(label)
    return example.SerializeToString(deterministic=True)


def _features(spec: LatentSpec) -> tfds.features.FeaturesDict:
    moments = tfds.features.Tensor(
        shape=spec.moments_shape, dtype=np.dtype(spec.dtype), encoding="bytes"
    )
    label = tfds.features.ClassLabel(num_classes=spec.num_classes)
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
        raise _damaged(directory / METADATA_FILE, "a directory", directory) from error
    except OSError:
        return None
    except ValueError as error:
        raise _damaged(directory / METADATA_FILE, str(error), directory) from error
    return metadata if isinstance(metadata, dict) and "format_version" in metadata else None


def _check_shard(path: os.PathLike, length: int) -> None:
    """Raises InputError unless the record file at `path` ends properly and has `length` records."""
    if not os.path.isfile(path):
        raise InputError(f"record file {path} is missing; copy it again or encode anew")
    reader = array_record_module.ArrayRecordReader(str(path), "readahead_buffer_size:0")
    found = reader.num_records()
    if found != length:  # a file cut short has lost its index, and counts 0 records
        raise _damaged(path, f"{found} readable records instead of {length}")


def _first_part(error: Exception) -> str:
    """The message up to the first semicolon, in one line; C++ adds its own file names after it."""
    return " ".join(str(error).partition(";")[0].split())


def _damaged(path: os.PathLike, reason: str, remove: Path | None = None) -> InputError:
    """The error for a damaged file.

    `remove` is the data set's directory if the set can be neither read nor overwritten.
    """
    advice = f"remove {remove}, and copy it again" if remove else "copy it again"
    return InputError(f"{path} is damaged ({reason}); {advice} or encode anew")


def _on_disk(directory: str | os.PathLike) -> Path:
    """The path. Raises InputError if it is in a bucket: it would be taken for a local folder."""
    if in_bucket(directory):
        raise InputError(
            f"cannot use data at {directory}: expected a path on a local or mounted disk; mount "
            "the bucket, e.g. with gcsfuse, or copy it"
        )
    return Path(directory)
