import dataclasses
import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tensorflow_datasets as tfds

from sra_jax.core.errors import InputError
from sra_jax.data.records import (
    FORMAT_VERSION,
    LatentSpec,
    open_records,
    tool_version,
    write_latents,
    write_shard,
)

SPEC = LatentSpec(
    codec="pixels",
    scale=0.18215,
    shift=0.5,
    latent_shape=(4, 4, 2),
    resolution=32,
    image_channels=3,
    num_classes=5,
)


def make_batch(count, seed=0, spec=SPEC):
    rng = np.random.default_rng(seed)
    moments = rng.standard_normal((count, *spec.moments_shape)).astype(np.float32)
    moments[..., spec.latent_shape[2] :] **= 2
    return moments, rng.integers(0, spec.num_classes, count)


@pytest.fixture
def written(tmp_path):
    """A data set of two shards, 70 and 30 records; its directory, moments and labels."""
    moments, labels = make_batch(100)
    shards = [
        iter([(moments[:64], labels[:64]), (moments[64:70], labels[64:70])]),
        [(moments[70:], labels[70:])],
    ]
    write_latents(tmp_path / "set", SPEC, shards)
    return tmp_path / "set", moments, labels


def shard_paths(directory):
    return sorted(directory.glob("*array_record*"))


def test_plain_tfds_reads_it(written):
    directory, moments, labels = written
    records = tfds.builder_from_directory(directory).as_data_source(split="train")
    assert len(records) == 100
    for record, row, label in zip(records, moments, labels, strict=True):
        np.testing.assert_array_equal(record["moments"], row.astype(np.float16))
        assert record["label"] == label


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_reads_what_was_written(tmp_path, dtype):
    moments, labels = make_batch(20)
    write_latents(tmp_path / "set", dataclasses.replace(SPEC, dtype=dtype), [[(moments, labels)]])
    source = open_records(tmp_path / "set")
    batch = source.read([3, 19, 0, 3])
    assert batch["moments"].dtype == dtype and batch["labels"].dtype == np.int32
    np.testing.assert_array_equal(batch["moments"], moments[[3, 19, 0, 3]].astype(dtype))
    np.testing.assert_array_equal(batch["labels"], labels[[3, 19, 0, 3]])


def test_spec_comes_back_with_its_counts(written):
    directory, _, labels = written
    counts = tuple(np.bincount(labels, minlength=5).tolist())
    expected = dataclasses.replace(
        SPEC, num_examples=100, class_counts=counts, tool_version=tool_version()
    )
    source = open_records(directory)
    assert source.spec == expected and len(source) == 100


def test_threads_share_a_source(written):
    directory, moments, _ = written
    source = open_records(directory)
    orders = [np.random.default_rng(seed).permutation(100) for seed in range(16)]
    with ThreadPoolExecutor(8) as pool:
        for order, batch in zip(orders, pool.map(source.read, orders), strict=True):
            np.testing.assert_array_equal(batch["moments"], moments[order].astype(np.float16))


@pytest.mark.parametrize("kept", [0, 1000, -1])
def test_a_file_cut_short_is_named(written, kept):
    path = shard_paths(written[0])[1]
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(InputError, match=f"{path} is damaged"):
        open_records(written[0])


def test_a_missing_file_is_named(written):
    path = shard_paths(written[0])[0]
    path.unlink()
    with pytest.raises(InputError, match=f"{path} is missing"):
        open_records(written[0])


def test_a_flipped_bit_is_found_by_the_read_that_meets_it(written):
    path = shard_paths(written[0])[1]
    data = bytearray(path.read_bytes())
    data[data.index(written[1][80].astype(np.float16).tobytes())] ^= 1
    path.write_bytes(data)
    source = open_records(written[0])
    source.read([0, 75, 79, 81])
    with pytest.raises(InputError, match=f"{path} is damaged .*hash mismatch") as caught:
        source.read([0, 75, 80])
    assert "\n" not in str(caught.value)


def test_directories_without_latents(tmp_path, written):
    with pytest.raises(InputError, match="no directory"):
        open_records(tmp_path / "nowhere")
    with pytest.raises(InputError, match=f"{__file__} is a file, expected the directory of a"):
        open_records(__file__)
    with pytest.raises(InputError, match="is a directory that holds no data set, expected one of"):
        open_records(tmp_path)
    (written[0] / "metadata.json").unlink()
    with pytest.raises(InputError, match="not of latents"):
        open_records(written[0])


@pytest.mark.parametrize("text", ["{", "", "[]", "{}", "\0"])
@pytest.mark.parametrize("name", ["dataset_info.json", "features.json", "metadata.json"])
def test_a_damaged_description_is_answered_in_one_line(written, name, text):
    (written[0] / name).write_text(text)
    with pytest.raises(InputError, match=f"{name}.* is damaged|not of latents") as caught:
        open_records(written[0])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [{"format_version": "2"}, {"latent_shape": 4}, {"num_classes": 2**40}, {"dtype": "int8"}],
)
def test_damaged_metadata_are_named_with_the_value(written, changes):
    path = written[0] / "metadata.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    (value,) = changes.values()
    with pytest.raises(InputError, match=rf"metadata\.json is damaged .*{value}.*; remove"):
        open_records(written[0])


def test_buckets_are_refused_rather_than_taken_for_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"gs://bucket/set: .*mount the bucket.*or copy it"):
        open_records("gs://bucket/set")
    with pytest.raises(InputError, match="gs://bucket/set"):
        write_latents("gs://bucket/set", SPEC, [[make_batch(8)]])
    assert list(tmp_path.iterdir()) == []


def test_a_newer_format_is_refused(written):
    path = written[0] / "metadata.json"
    metadata = json.loads(path.read_text())
    path.write_text(json.dumps(metadata | {"format_version": FORMAT_VERSION + 1, "novelty": 1}))
    with pytest.raises(InputError, match="update sra_jax"):
        open_records(written[0])
    path.write_text(json.dumps(metadata | {"novelty": 1}))
    with pytest.raises(InputError, match=r"metadata\.json is damaged"):
        open_records(written[0])


def test_a_set_of_the_first_format_still_opens(written):
    path = written[0] / "metadata.json"
    metadata = json.loads(path.read_text())
    for name in ("source", "weights", "crop", "flips", "skipped", "tool_version"):
        del metadata[name]
    path.write_text(json.dumps(metadata | {"format_version": 1}))
    source = open_records(written[0])
    assert len(source.read(range(100))["labels"]) == 100
    expected = dataclasses.replace(SPEC, num_examples=100, format_version=1)
    assert dataclasses.replace(source.spec, class_counts=()) == expected


def test_the_same_batches_make_the_same_bytes_in_every_process(written, tmp_path):
    code = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_records import SPEC, make_batch
from sra_jax.data.records import write_shard
write_shard(Path(sys.argv[1]), SPEC, [make_batch(50)])
"""
    command = [sys.executable, "-c", code, str(tmp_path / "there"), os.path.dirname(__file__)]
    subprocess.run(command, check=True)
    write_shard(tmp_path / "here", SPEC, [make_batch(50)])
    assert (tmp_path / "here").read_bytes() == (tmp_path / "there").read_bytes()


def test_a_set_is_never_overwritten(written):
    before = shard_paths(written[0])[0].read_bytes()
    with pytest.raises(InputError, match="exists already"):
        write_latents(written[0], SPEC, [[make_batch(8)]])
    assert shard_paths(written[0])[0].read_bytes() == before


def change(moments, labels, value):
    return np.where(moments == moments[0, 0, 0, 0], value, moments), labels


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda moments, labels: (moments[:, :3], labels), "moments of shape"),
        (lambda moments, labels: (moments[:3], labels), "moments of shape"),
        (lambda moments, labels: (moments[..., ::-1], labels), "log-variance"),
        (lambda moments, labels: change(moments, labels, np.nan), "not finite in float16"),
        (lambda moments, labels: change(moments, labels, 1e5), "not finite in float16"),
        (lambda moments, labels: (moments, labels + 1), "label 5, expected one in"),
        (lambda moments, labels: (moments, labels - 1), "label -1, expected one in"),
        (lambda moments, labels: (moments[:0], labels[:0]), "no records"),
    ],
)
def test_a_batch_that_does_not_fit_leaves_nothing(tmp_path, spoil, message):
    good = make_batch(30)
    with pytest.raises(InputError, match=message):
        write_latents(tmp_path / "set", SPEC, [[good], [spoil(*good)]])
    assert not list(tmp_path.iterdir())


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[2])
from test_records import SPEC, make_batch
from sra_jax.data.records import write_latents

def batches():
    yield make_batch(500)
    os.kill(os.getpid(), signal.SIGKILL)

write_latents(sys.argv[1], SPEC, [[make_batch(500)], batches()])
"""


def test_a_killed_writer_leaves_no_data_set(tmp_path):
    command = [sys.executable, "-c", KILLED, str(tmp_path / "set"), os.path.dirname(__file__)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    (leftover,) = tmp_path.iterdir()
    for directory in (tmp_path / "set", leftover):
        with pytest.raises(InputError):
            open_records(directory)
    write_latents(tmp_path / "set", SPEC, [[make_batch(10)]])
    assert len(open_records(tmp_path / "set")) == 10
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
