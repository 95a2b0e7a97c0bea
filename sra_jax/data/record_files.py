"""Files of records (ArrayRecord, described as TFDS does it): reading, writing, damage.

What the records hold is decided by the data sets that use this: `records` and `side_sets`.
"""

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from google.protobuf.message import DecodeError
from tensorflow_datasets.proto import tf_example_pb2

from sra_jax.core.errors import InputError
from sra_jax.core.files import in_bucket
from sra_jax.core.shapes import FieldSpec

Feature = Mapping[str, Any]
"""The stored values of one record by name, as the protocol buffer has them."""

PROBED_BYTES = 2**16  # read at each end of a record file; its index is at the end


class RecordFiles:
    """Random access to the records of a data set. Threads may share it.

    Attributes:
        paths: the record files.
    """

    def __init__(self, directory: Path):
        """Opens the set at `directory`, after checking that every file is complete.

        Raises:
            InputError: its metadata or a record file is missing, damaged or cut short.
        """
        try:
            builder = tfds.builder_from_directory(directory)
            self._split = builder.info.splits["train"]
            shards = list(zip(self._split.filepaths, self._split.shard_lengths, strict=True))
        except Exception as error:  # of a dozen kinds, of parsers and of TFDS
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            path = directory / "dataset_info.json or features.json"
            raise damaged(path, reason, directory) from error
        for path, length in shards:
            _check_file(path, length)
        self.paths = [Path(path) for path in self._split.filepaths]
        self._records = builder.as_data_source(split="train").data_source

    def __len__(self) -> int:
        return len(self._records)

    def read(
        self, indices: Sequence[int], parse: Callable[[Feature], dict[str, np.ndarray]]
    ) -> dict[str, np.ndarray]:
        """Reads records in one parallel request, and stacks what `parse` makes of each.

        `parse` may raise IndexError, OverflowError or ValueError for a record of another kind.

        Raises:
            InputError: a record is damaged, or of another kind.
        """
        try:
            records = self._records.__getitems__(indices)
        except RuntimeError as error:  # the C++ reader found a wrong checksum
            raise self._find_damage(indices) from error
        rows = []
        # Parsed here, because TFDS's decoder takes ten times as long as all the rest.
        try:
            for record in records:
                rows.append(parse(tf_example_pb2.Example.FromString(record).features.feature))
        except (DecodeError, IndexError, ValueError, OverflowError) as error:
            index = indices[len(rows)]
            reason = f"record {index} is of another kind: {first_part(error)}"
            raise damaged(self._file(index), reason) from error
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

    def fingerprint(self) -> str:
        """A digest of the names, sizes, beginnings and ends of the record files.

        This is quick at any size. A record damaged in between fails its own checksum when it is
        read.
        """
        digest = hashlib.sha256()
        for path in sorted(self.paths, key=lambda path: path.name):
            size = path.stat().st_size
            digest.update(f"{path.name} {size}\n".encode())
            with path.open("rb") as file:
                digest.update(file.read(PROBED_BYTES))
                file.seek(max(size - PROBED_BYTES, 0))
                digest.update(file.read())
        return digest.hexdigest()[:16]

    def _file(self, index: int) -> Path:
        """The record file that holds the record at `index`."""
        ends = np.cumsum(self._split.shard_lengths)
        return self.paths[np.searchsorted(ends, index, side="right")]

    def _find_damage(self, indices: Sequence[int]) -> InputError:
        """The error that names the damaged file among those that hold `indices`."""
        for index in indices:
            try:
                self._records[index]
            except RuntimeError as error:
                return damaged(self._file(index), first_part(error))
        return InputError(f"a read from {self.paths[0].parent} failed once; try again")


def parse_array(feature: Feature, name: str, field: FieldSpec) -> np.ndarray:
    """The array `name` of a record. Raises IndexError or ValueError if it is of another kind."""
    stored = np.frombuffer(feature[name].bytes_list.value[0], field.dtype)
    return stored.reshape(field.shape)


def array_feature(field: FieldSpec) -> tfds.features.Tensor:
    """The description of such an array for TFDS."""
    return tfds.features.Tensor(shape=field.shape, dtype=np.dtype(field.dtype), encoding="bytes")


def serialize(arrays: Mapping[str, np.ndarray], integers: Mapping[str, int]) -> bytes:
    """The bytes of one record, as TFDS encodes it, but faster and in a fixed order of fields."""
    example = tf_example_pb2.Example()
    feature = example.features.feature
    for name, array in arrays.items():
        feature[name].bytes_list.value.append(array.tobytes())
    for name, integer in integers.items():
        feature[name].int64_list.value.append(integer)
    return example.SerializeToString(deterministic=True)


def shard_name(index: int, count: int) -> str:
    """File name of record file `index` of `count`."""
    return f"latents-train.array_record-{index:05d}-of-{count:05d}"


def write_records(path: Path, records: Iterable[bytes]) -> None:
    """Writes one record file. Raises OSError: the disk is full, or cannot be written to."""
    # One record a group, for random access. Not compressed, because latents are mostly noise.
    options = "group_size:1,uncompressed"
    writer = _on_file(array_record_module.ArrayRecordWriter, str(path), options)
    try:
        for record in records:
            _on_file(writer.write, record)
    except BaseException:
        with contextlib.suppress(RuntimeError):  # the first error is the one to report
            writer.close()
        raise
    _on_file(writer.close)


def write_tfds_metadata(
    directory: Path,
    features: tfds.features.FeaturesDict,
    lengths: Sequence[int],
    metadata: Mapping[str, Any],
) -> None:
    """Writes what makes the record files in `directory`, of these `lengths`, a TFDS data set."""
    paths = [directory / shard_name(index, len(lengths)) for index in range(len(lengths))]
    split = tfds.core.SplitInfo(
        name="train",
        shard_lengths=list(lengths),
        num_bytes=sum(path.stat().st_size for path in paths),
    )
    tfds.folder_dataset.write_metadata(
        data_dir=directory,
        features=features,
        split_infos=[split],
        check_data=False,  # it would read through TensorFlow
        metadata=tfds.core.MetadataDict(metadata),
    )


def _on_file(call: Callable[..., Any], *arguments: Any) -> Any:
    """Calls the C++ writer. Raises OSError if it fails."""
    try:
        return call(*arguments)
    except RuntimeError as error:
        raise OSError(first_part(error)) from error


def _check_file(path: os.PathLike, length: int) -> None:
    """Raises InputError unless the record file at `path` ends properly and has `length` records."""
    if not os.path.isfile(path):
        raise InputError(f"record file {path} is missing; copy it again or encode anew")
    reader = array_record_module.ArrayRecordReader(str(path), "readahead_buffer_size:0")
    found = reader.num_records()
    if found != length:  # a file cut short has lost its index, and counts 0 records
        raise damaged(path, f"{found} readable records instead of {length}")


def first_part(error: Exception) -> str:
    """The message up to the first semicolon, in one line; C++ adds its own file names after it."""
    return " ".join(str(error).partition(";")[0].split())


def damaged(path: os.PathLike, reason: str, remove: Path | None = None) -> InputError:
    """The error for a damaged file.

    `remove` is the data set's directory if the set can be neither read nor overwritten.
    """
    advice = f"remove {remove}, and copy it again" if remove else "copy it again"
    return InputError(f"{path} is damaged ({reason}); {advice} or encode anew")


def on_disk(directory: str | os.PathLike) -> Path:
    """The path. Raises InputError if it is in a bucket: it would be taken for a local folder."""
    if in_bucket(directory):
        raise InputError(
            f"cannot use data at {directory}: expected a path on a local or mounted disk; mount "
            "the bucket, e.g. with gcsfuse, or copy it"
        )
    return Path(directory)
