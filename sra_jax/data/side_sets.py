"""Side sets: fields encoded later for the records of a latent data set, in the same order.

A frozen encoder's features, for instance. `open_records(PATH, *SIDE_SETS)` joins them by index.
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
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
    parse_array,
    serialize,
    shard_name,
    write_records,
    write_tfds_metadata,
)

FORMAT_VERSION = 1
METADATA_FILE = "metadata.json"


@dataclasses.dataclass(frozen=True)
class SideSpec:
    """The metadata of a side set.

    Attributes:
        fields: the arrays of a record, by name.
        of: fingerprint of the record files of the latent data set.
        source: what encoded the fields.
    """

    fields: Mapping[str, FieldSpec]
    of: str
    source: str = ""


class SideSet:
    """Random access to the records of a side set. `open_side_set` makes it."""

    def __init__(self, spec: SideSpec, files: RecordFiles):
        self.spec, self.files = spec, files

    def read(self, indices: Sequence[int]) -> dict[str, np.ndarray]:
        """Reads the fields of the records at `indices`, each `[B, ...]`. Raises InputError."""
        return self.files.read(indices, self._parse)

    def _parse(self, feature: Feature) -> dict[str, np.ndarray]:
        return {name: parse_array(feature, name, f) for name, f in self.spec.fields.items()}


def open_side_set(directory: Path, latents: RecordFiles) -> SideSet:
    """Opens the side set at `directory` that belongs to `latents`.

    Raises:
        InputError: there is no such set, it is damaged, or it belongs to other records.
    """
    path = directory / METADATA_FILE
    try:
        stored = json.loads(path.read_text())
        if isinstance(stored, dict) and "of" not in stored:
            raise InputError(f"{directory} is a data set, but no side set; check the path")
        if (found := stored["format_version"]) > FORMAT_VERSION:
            raise InputError(
                f"{directory} has format {found}, expected {FORMAT_VERSION}: update sra_jax"
            )
        fields = {name: FieldSpec(tuple(s), d) for name, (s, d) in stored["fields"].items()}
        spec = SideSpec(fields, stored["of"], stored["source"])
    except OSError as error:
        raise InputError(
            f"{directory} is no side set ({error.strerror}: {METADATA_FILE}); check the path"
        ) from None
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise damaged(path, f"{type(error).__name__}: {error}", directory) from None
    files = RecordFiles(directory)
    if spec.of != latents.fingerprint() or len(files) != len(latents):
        raise InputError(
            f"side set {directory} was made for other records than those in "
            f"{latents.paths[0].parent}; encode it again, or name the set that it was made for"
        )
    return SideSet(spec, files)


def write_side_set(
    directory: Path, spec: SideSpec, shards: Sequence[Iterable[Mapping[str, np.ndarray]]]
) -> None:
    """Writes a side set into `directory`, an empty one; its metadata, last, make it whole.

    Args:
        directory: where to write.
        spec: the metadata.
        shards: for each record file, batches of the fields, each `[B, ...]`.

    Raises:
        InputError: a batch does not fit the spec.
        OSError: the disk is full, or cannot be written to.
    """
    lengths = []
    for index, batches in enumerate(shards):
        lengths.append(0)

        def counted(batches=batches):
            for batch in batches:
                for row in _rows(spec, batch):
                    lengths[-1] += 1
                    yield row

        write_records(directory / shard_name(index, len(shards)), counted())
    stored = {
        "format_version": FORMAT_VERSION,
        "fields": {name: [list(field.shape), field.dtype] for name, field in spec.fields.items()},
        "of": spec.of,
        "source": spec.source,
    }
    features = {name: array_feature(field) for name, field in spec.fields.items()}
    write_tfds_metadata(directory, tfds.features.FeaturesDict(features), lengths, stored)


def _rows(spec: SideSpec, batch: Mapping[str, np.ndarray]) -> Iterable[bytes]:
    """The records of a batch. Raises InputError if it does not fit the spec."""
    count = len(next(iter(batch.values())))
    for name, field in spec.fields.items():
        given = batch[name].shape if name in batch else "no array"
        if given != (count, *field.shape):
            raise InputError(f"field {name} has {given}, expected {(count, *field.shape)}")
    for row in range(count):
        arrays = {name: batch[name][row].astype(f.dtype) for name, f in spec.fields.items()}
        yield serialize(arrays, {})
