"""Side sets: fields of the same records, joined by index, refused if they belong to others."""

import json

import numpy as np
import pytest

from sra_jax.core.errors import InputError
from sra_jax.core.shapes import FieldSpec
from sra_jax.data.record_files import RecordFiles
from sra_jax.data.records import open_records, write_latents
from sra_jax.data.side_sets import METADATA_FILE, SideSpec, write_side_set
from sra_jax.data.spec import LatentSpec

COUNT = 10
FIELDS = {"feature": FieldSpec((3, 4), "float16"), "length": FieldSpec((), "int32")}


def write_set(directory, seed=0):
    rng = np.random.default_rng(seed)
    spec = LatentSpec("pixels", 1.0, 0.0, (2, 2, 1), 2, 1, num_classes=3, dtype="float32")
    moments = rng.uniform(size=(COUNT, *spec.moments_shape)).astype("f")
    write_latents(directory, spec, [[(moments, np.arange(COUNT) % 3)]])
    return RecordFiles(directory)


def make_batches(counts):
    """Fields whose values tell the record's number."""
    first = 0
    for count in counts:
        numbers = np.arange(first, first + count)
        feature = np.tile(numbers[:, None, None], (1, 3, 4)).astype("f2")
        yield {"feature": feature, "length": (100 + numbers).astype("i4")}
        first += count


@pytest.fixture
def sets(tmp_path):
    """A latent set, and a side set in two files of other lengths than its own."""
    files = write_set(tmp_path / "latents")
    (tmp_path / "side").mkdir()
    spec = SideSpec(FIELDS, files.fingerprint(), "a test")
    first, second, third = make_batches([4, 3, 3])
    write_side_set(tmp_path / "side", spec, [[first, second], [third]])
    return tmp_path / "latents", tmp_path / "side"


def test_fields_are_joined_by_index(sets):
    latents, side = sets
    source = open_records(latents, side)
    assert source.fields() == source.spec.fields() | FIELDS
    batch, plain = source.read([7, 0, 9, 3]), open_records(latents).read([7, 0, 9, 3])
    np.testing.assert_array_equal(batch["length"], [107, 100, 109, 103])
    np.testing.assert_array_equal(batch["feature"][:, 1, 2], [7, 0, 9, 3])
    assert batch["feature"].dtype == np.float16
    for name, array in plain.items():
        np.testing.assert_array_equal(batch[name], array)
    assert source.fingerprint().startswith(open_records(latents).fingerprint() + "+")


def test_a_side_set_of_other_records_is_refused(sets, tmp_path):
    write_set(tmp_path / "others", seed=1)
    with pytest.raises(InputError, match=r"side was made for other records than those in .*others"):
        open_records(tmp_path / "others", sets[1])


def test_a_field_in_two_sets_is_refused(sets):
    with pytest.raises(InputError, match="field feature is in two of the sets"):
        open_records(sets[0], sets[1], sets[1])


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        (None, "is no side set"),
        ("{", "metadata.json is damaged"),
        ("[]", "metadata.json is damaged"),
        ('{"of": ""}', "metadata.json is damaged"),
        ('{"format_version": 2, "codec": "pixels"}', "is a data set, but no side set"),
        ({"format_version": 2}, "has format 2, expected 1: update sra_jax"),
        ({"fields": {"feature": [[5], "float16"]}}, "record 0 is of another kind"),
    ],
    ids=str,
)
def test_damaged_side_sets_are_refused(sets, metadata, words):
    latents, side = sets
    path = side / METADATA_FILE
    if isinstance(metadata, dict):
        path.write_text(json.dumps(json.loads(path.read_text()) | metadata))
    elif metadata is None:
        path.unlink()
    else:
        path.write_text(metadata)
    with pytest.raises(InputError, match=words):
        open_records(latents, side).read([0])


def test_a_batch_that_does_not_fit_is_refused(tmp_path):
    spec = SideSpec(FIELDS, "")
    (batch,) = make_batches([2])
    for wrong in ({"feature": batch["feature"]}, batch | {"length": np.zeros((2, 1), "i4")}):
        with pytest.raises(InputError, match="field length has"):
            write_side_set(tmp_path, spec, [[wrong]])
