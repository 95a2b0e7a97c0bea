"""The latent record and its data set on disk: tensorflow-datasets and ArrayRecord, no TensorFlow.

A record is `{"moments": [h, w, 2c], "label": int}`; the moments are mean and *standard deviation*
of the posterior, concatenated on channels. `metadata.json` beside the records is the `LatentSpec`.
Anyone reads the set with `tfds.builder_from_directory(directory).as_data_source(split="train")`.
"""

import contextlib
import dataclasses
import glob
import importlib.metadata
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

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
    """Random access to the records of a latent data set; threads may share it.

    Made by `open_latents`.
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
        """Reads the records at `indices`, at least one, in one parallel request.

        Returns:
            "moments": `[B, h, w, 2c]` of the stored dtype; "labels": int32 `[B]`.

        Raises:
            InputError: a record is damaged, or of another kind.
        """
        try:
            records = self._records.__getitems__(indices)
        except RuntimeError as error:  # every failed checksum in the C++ reader
            raise self._damage(indices) from error
        moments = np.empty((len(records), *self.spec.moments_shape), self.spec.dtype)
        labels = np.empty(len(records), np.int32)
        # The features' own decoder takes ten times as long as all the rest.
        try:
            for row, record in enumerate(records):
                feature = tf_example_pb2.Example.FromString(record).features.feature
                stored = np.frombuffer(feature["moments"].bytes_list.value[0], self.spec.dtype)
                moments[row] = stored.reshape(self.spec.moments_shape)
                labels[row] = feature["label"].int64_list.value[0]
        except (DecodeError, IndexError, ValueError, OverflowError) as error:
            raise self._foreign(indices[row], _first_part(error)) from error
        if (outside := np.flatnonzero((labels < 0) | (labels >= self.spec.num_classes))).size:
            row = outside[0]
            raise self._foreign(indices[row], f"label {labels[row]} of {self.spec.num_classes}")
        return {"moments": moments, "labels": labels}

    def _foreign(self, index: int, reason: str) -> InputError:
        return _damaged(self._file(index), f"record {index} is of another kind: {reason}")

    def _file(self, index: int) -> Path:
        """The record file that holds the record at `index`."""
        ends = np.cumsum(self._split.shard_lengths)
        return self.files[np.searchsorted(ends, index, side="right")]

    def _damage(self, indices: Sequence[int]) -> InputError:
        for index in indices:
            try:
                self._records[index]
            except RuntimeError as error:
                return _damaged(self._file(index), _first_part(error))
        return InputError(f"a read from {self._split.filepaths[0].parent} failed once; try again")


def open_latents(directory: str | os.PathLike) -> LatentSource:
    """Opens the latent data set at `directory`, every record file checked for completeness.

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
        raise _damaged_info(directory, "dataset_info.json or features.json", reason) from error
    for path, length in shards:
        _check_shard(path, length)
    return LatentSource(spec, builder)


def holds_latents(directory: str | os.PathLike) -> bool:
    """Whether a latent data set, of whatever version, is at `directory`; reads no record.

    Raises:
        InputError: its metadata are damaged, or `directory` is no path on a disk.
    """
    return _metadata(_on_disk(directory)) is not None


def write_latents(
    directory: str | os.PathLike, spec: LatentSpec, shards: Sequence[Iterable[Batch]]
) -> LatentSpec:
    """Writes a latent data set at `directory`, which appears there whole or not at all.

    Args:
        directory: a path that does not exist yet, or an empty directory.
        spec: the metadata; `num_examples` and `class_counts` are counted here.
        shards: for each record file, the batches that go into it: moments `[B, h, w, 2c]` before
            scale and shift, and labels `[B]`. Lazy iterables keep one batch in memory at a time.

    Returns:
        The spec as stored.

    Raises:
        InputError: `directory` is taken or not on a disk, a batch does not fit the spec, or a shard
            is empty.
    """
    directory = _on_disk(directory)
    if directory.is_file() or (directory.is_dir() and any(directory.iterdir())):
        raise _taken(directory)
    prefix = f".{directory.name}.incomplete-"
    scratch = directory.with_name(prefix + uuid.uuid4().hex)
    scratch.mkdir(parents=True)
    try:
        spec = _write_all(scratch, spec, shards)
        try:
            scratch.rename(directory)
        except OSError as error:
            raise _taken(directory) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    # Only now is it certain that nobody can still finish one of these.
    for leftover in directory.parent.glob(f"{glob.escape(prefix)}*"):
        shutil.rmtree(leftover, ignore_errors=True)
    return spec


def shard_name(index: int, count: int) -> str:
    """File name of record file `index` of `count`."""
    return f"latents-train.array_record-{index:05d}-of-{count:05d}"


def write_shard(path: Path, spec: LatentSpec, batches: Iterable[Batch]) -> np.ndarray:
    """Writes one record file. The same batches make the same bytes.

    Returns:
        How many records of each class it holds, int64 `[num_classes]`.

    Raises:
        InputError: a batch does not fit the spec.
        OSError: the disk is full, or cannot be written to.
    """
    counts = np.zeros(spec.num_classes, np.int64)
    with _open_writer(path) as write:
        for moments, labels in batches:
            moments = _checked(spec, moments, labels)
            for row, label in zip(moments, labels, strict=True):
                write(_serialize(row, int(label)))
            counts += np.bincount(labels, minlength=spec.num_classes)
    return counts


def write_metadata(directory: Path, spec: LatentSpec, counts: np.ndarray) -> LatentSpec:
    """Makes the record files in `directory`, all of them there, a data set.

    Args:
        directory: where they are.
        spec: the metadata, to be completed with the counts and the tool's version.
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
    """The metadata of the latent data set at `directory`; looks at no record.

    Raises:
        InputError: there is none, it is damaged, or a newer version wrote it.
    """
    if not directory.is_dir():
        found = f"{directory} is a file" if directory.exists() else f"no directory {directory}"
        raise InputError(f"{found}, expected the directory of a latent data set; check the path")
    if not (directory / "dataset_info.json").is_file():
        raise InputError(
            f"{directory} is a directory that holds no data set, expected one of latents; write "
            "it with sra_jax.cli.encode"
        )
    metadata = _metadata(directory)
    if metadata is None:
        raise InputError(
            f"{directory} holds a data set, but not of latents; encode it with sra_jax.cli.encode"
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
        reason = str(error).partition(";")[0]
        raise _damaged_info(directory, METADATA_FILE, reason) from error


def tool_version() -> str:
    """Version of the installed sra_jax; "unknown" where it runs without being installed."""
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


@contextlib.contextmanager
def _open_writer(path: Path) -> Iterator[Callable[[bytes], None]]:
    """Yields what appends a record to the new file at `path`; failures are OSErrors."""
    try:
        # One record a group, for random access; latents are noise, which no compressor shortens.
        writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1,uncompressed")
    except RuntimeError as error:
        raise OSError(_first_part(error)) from error

    def write(record: bytes) -> None:
        try:
            writer.write(record)
        except RuntimeError as error:
            raise OSError(_first_part(error)) from error

    try:
        yield write
    except BaseException:
        with contextlib.suppress(RuntimeError):  # said already, or of a file nobody wants
            writer.close()
        raise
    try:
        writer.close()
    except RuntimeError as error:
        raise OSError(_first_part(error)) from error


def _serialize(moments: np.ndarray, label: int) -> bytes:
    """What the features' own encoder makes, a few times faster, in an order fixed for good."""
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
    """The moments in the stored dtype; raises InputError unless the batch fits the spec."""
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
    """The metadata of the latent data set at `directory`; None where there is none.

    Raises:
        InputError: they are damaged.
    """
    try:
        metadata = json.loads((directory / METADATA_FILE).read_text())
    except IsADirectoryError as error:
        raise _damaged_info(directory, METADATA_FILE, "a directory") from error
    except OSError:
        return None
    except ValueError as error:
        raise _damaged_info(directory, METADATA_FILE, str(error)) from error
    return metadata if isinstance(metadata, dict) and "format_version" in metadata else None


def _check_shard(path: os.PathLike, length: int) -> None:
    """Raises InputError unless the record file at `path` ends properly and has `length` records."""
    if not os.path.isfile(path):
        raise InputError(f"record file {path} is missing; copy it again or encode anew")
    reader = array_record_module.ArrayRecordReader(str(path), "readahead_buffer_size:0")
    found = reader.num_records()
    if found != length:  # a file cut short has lost its index, and counts none
        raise _damaged(path, f"{found} readable records instead of {length}")


def _first_part(error: Exception) -> str:
    """What the C++ library says, in one line, without where in its files."""
    return " ".join(str(error).partition(";")[0].split())


def _damaged(path: os.PathLike, reason: str) -> InputError:
    return InputError(f"{path} is damaged ({reason}); copy it again or encode anew")


def _damaged_info(directory: Path, name: str, reason: str) -> InputError:
    """Of what describes the set: it cannot be read then, nor another be written in its place."""
    return InputError(
        f"{directory / name} is damaged ({reason}); remove {directory}, and copy it again or "
        "encode anew"
    )


def _on_disk(directory: str | os.PathLike) -> Path:
    """The path. Raises InputError for that of a bucket, which would be taken for a local folder."""
    if in_bucket(directory):
        raise InputError(
            f"cannot use data at {directory}: data are read from a local or mounted disk: mount "
            "the bucket, e.g. with gcsfuse, or copy it"
        )
    return Path(directory)


def _taken(directory: Path) -> InputError:
    return InputError(f"{directory} exists already; remove it or name another directory")
