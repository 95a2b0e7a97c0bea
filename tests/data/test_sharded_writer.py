import dataclasses
import json
import shutil

import numpy as np
import pytest
from tiny import pixel_spec

from sra_jax.core.errors import InputError, RunError
from sra_jax.data.records import open_records, shard_name
from sra_jax.data.sharded_writer import ShardedSet, record_bytes

SPEC = pixel_spec(4, num_classes=5, channels=2)
SHARDS = 4


def batches(index, count=10):
    """What shard `index` holds."""
    rng = np.random.default_rng(index)
    moments = rng.uniform(size=(count, *SPEC.moments_shape)).astype(np.float32)
    yield moments, rng.integers(0, SPEC.num_classes, count)


def make(out, spec=SPEC, inputs="same"):
    return ShardedSet(out, spec, SHARDS, inputs)


def write(shards, own=range(SHARDS), process=0):
    """What one process does, but for finishing; returns what it has written."""
    with shards.locked(process):
        left = shards.begin(own)
        for index in left:
            shards.write(index, batches(index), skipped=[])
    return left


def contents(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The files of an uninterrupted run."""
    shards = make(tmp_path_factory.mktemp("expected") / "set")
    write(shards)
    shards.finish()
    return contents(shards.out)


@pytest.mark.parametrize("hosts", [1, 2, 4, 8])
def test_any_number_of_hosts_write_the_same_set(tmp_path, expected, hosts):
    written = []
    for host in range(hosts):
        written += write(make(tmp_path / "set"), range(host, SHARDS, hosts), host)
    assert sorted(written) == list(range(SHARDS))
    make(tmp_path / "set").finish()
    make(tmp_path / "set").clean()
    assert contents(tmp_path / "set") == expected
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    source = open_records(tmp_path / "set")
    moments, labels = zip(*(batch for i in range(SHARDS) for batch in batches(i)), strict=True)
    batch = source.read(range(len(source)))
    np.testing.assert_array_equal(batch["moments"], np.concatenate(moments).astype(np.float16))
    np.testing.assert_array_equal(batch["labels"], np.concatenate(labels))


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "spoil",
    [cut, flip, lambda path: path.unlink(), lambda path: path.write_bytes(b"")],
    ids=["cut", "flipped", "missing", "empty"],
)
def test_a_torn_shard_is_redone_and_no_other(tmp_path, expected, spoil):
    shards = make(tmp_path / "set")
    write(shards)
    directory = shards.scratch / "set"
    times = {path.name: path.stat().st_mtime_ns for path in directory.iterdir()}
    torn = shard_name(2, SHARDS)
    spoil(directory / torn)
    assert write(make(tmp_path / "set")) == [2]
    for path in directory.iterdir():
        assert (path.stat().st_mtime_ns == times[path.name]) == (path.name != torn)
    shards.finish()
    assert contents(shards.out) == expected


def test_a_damaged_report_makes_its_shard_unfinished(tmp_path, expected):
    shards = make(tmp_path / "set")
    write(shards)
    (shards.scratch / "reports/00001.json").write_text('{"class_')
    assert write(shards) == [1]
    shards.finish()
    assert contents(shards.out) == expected


def test_a_whole_set_is_recognised_and_another_refused(tmp_path):
    shards = make(tmp_path / "set")
    assert not shards.is_whole()
    write(shards)
    assert not shards.is_whole()
    shards.finish()
    assert shards.is_whole()
    with pytest.raises(InputError, match=r"another data set: scale was 1.0, is 2.0; remove it"):
        make(tmp_path / "set", dataclasses.replace(SPEC, scale=2.0)).is_whole()
    (tmp_path / "other").mkdir()
    assert not make(tmp_path / "other").is_whole()
    (tmp_path / "other/thesis.tex").touch()
    with pytest.raises(InputError, match="exists already"):
        make(tmp_path / "other").is_whole()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"spec": dataclasses.replace(SPEC, resolution=8)}, "resolution was 4, is 8"),
        ({"inputs": "another"}, "inputs was same, is another"),
    ],
)
def test_another_set_is_not_mixed_with_one_begun(tmp_path, changes, message):
    write(make(tmp_path / "set"), own=[0])
    with pytest.raises(InputError, match=f"beginning of another data set: {message}"):
        write(make(tmp_path / "set", **changes))
    assert write(make(tmp_path / "set")) == [1, 2, 3]


def test_a_second_run_is_kept_out(tmp_path):
    shards = make(tmp_path / "set")
    with shards.locked(0):
        with pytest.raises(InputError, match="is writing"):
            write(make(tmp_path / "set"))
        write(make(tmp_path / "set"), own=[1], process=1)
    assert write(make(tmp_path / "set")) == [0, 2, 3]


def test_a_process_that_fails_tells_the_others(tmp_path):
    (tmp_path / "set").mkdir()  # empty, which is no set
    first, second = make(tmp_path / "set"), make(tmp_path / "set")
    write(first, own=[0, 1])
    with pytest.raises(InputError), second.locked(1):
        raise InputError("the cat ate image 7")
    with pytest.raises(RunError, match=r"process 1 ended: the cat ate image 7; 2 of 4 shards"):
        first.await_all()
    assert write(first) == [2, 3]  # a new run forgets it
    first.check_others()


def test_a_place_that_cannot_be_written_to_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"cannot write .*Not a directory"):
        write(make(tmp_path / "file/set"))


def test_a_batch_that_does_not_fit_loses_only_its_shard(tmp_path):
    shards = make(tmp_path / "set")
    write(shards, own=[0, 1])
    with shards.locked(0), pytest.raises(InputError, match="moments of shape"):
        shards.write(2, [(np.zeros((3, 1, 1, 4)), np.zeros(3, int))], skipped=[])
    assert list((shards.scratch / "partial").iterdir()) == []
    assert write(shards) == [2, 3]


@pytest.mark.parametrize("when", ["writing", "closing", "reporting"])
def test_a_full_disk_is_told_in_one_line_and_loses_nothing(tmp_path, expected, monkeypatch, when):
    shards = make(tmp_path / "set")
    write(shards, own=[0, 1])

    def full(*arguments):
        raise OSError(28, "No space left on device")

    patched = {"writing": "write_shard", "closing": "_sha256_on_disk", "reporting": "_write_json"}
    with monkeypatch.context() as patch, shards.locked(0):
        patch.setattr(f"sra_jax.data.sharded_writer.{patched[when]}", full)
        with pytest.raises(RunError, match="No space left on device; 2 of 4 shards are safe"):
            shards.write(2, batches(2), skipped=[])
    assert list((shards.scratch / "partial").iterdir()) == []
    assert write(shards) == [2, 3]
    shards.finish()
    assert contents(shards.out) == expected


def test_too_little_space_is_refused_beforehand(tmp_path, monkeypatch):
    shards = make(tmp_path / "set")
    with shards.locked(0):
        shards.begin(range(SHARDS))
        assert "free" in shards.check_space(1000)
        usage = shutil.disk_usage(tmp_path)._replace(free=10_000)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
        with pytest.raises(InputError, match=r"needs 0\.3 MB more, but its disk has only 0\.0 MB"):
            shards.check_space(1000)
        shards.write(0, batches(0, count=1000), skipped=[])
        shards.check_space(1000)  # what is written already needs no more


def test_the_estimate_is_close(tmp_path):
    shards = make(tmp_path / "set", dataclasses.replace(SPEC, latent_shape=(32, 32, 4)))
    moments, labels = np.ones((1000, 32, 32, 8)), np.zeros(1000, int)
    with shards.locked(0):
        shards.write(0, [(moments, labels)], skipped=[])
    size = (shards.scratch / "set" / shard_name(0, SHARDS)).stat().st_size
    assert 0.99 * size < 1000 * record_bytes(shards._spec) < 1.01 * size


def test_skipped_images_are_listed_in_order_and_may_be_a_whole_shard(tmp_path):
    shards = make(tmp_path / "set")
    with shards.locked(0):
        for index in shards.begin(range(SHARDS)):
            found = [] if index == 1 else batches(index)
            shards.write(index, found, skipped=[f"image {index}"])
    spec = shards.finish()
    assert spec.skipped == ("image 0", "image 1", "image 2", "image 3")
    source = open_records(shards.out)
    assert source.spec == spec and len(source) == 30
    assert len(source.read(range(30))["labels"]) == 30


def test_nothing_but_skipped_images_is_no_set(tmp_path):
    shards = make(tmp_path / "set")
    with shards.locked(0):
        for index in shards.begin(range(SHARDS)):
            shards.write(index, [], skipped=[f"image {index}"])
    with pytest.raises(InputError, match="all 4 images were skipped, the first: image 0"):
        shards.finish()
    assert not shards.out.exists()


def spoil_by_directory(path):
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    "spoil",
    [lambda path: path.write_text("{"), lambda path: path.write_text("[]"), spoil_by_directory],
)
def test_a_damaged_plan_is_answered_with_what_to_remove(tmp_path, spoil):
    shards = make(tmp_path / "set")
    write(shards, own=())
    spoil(shards.scratch / "plan.json")
    with pytest.raises(InputError, match=rf"plan\.json .*; remove {shards.scratch}, and run"):
        write(shards)


def test_the_plan_says_what_is_being_written(tmp_path):
    shards = make(tmp_path / "set")
    write(shards, own=[])
    plan = json.loads((shards.scratch / "plan.json").read_text())
    assert plan["codec"] == "pixels" and plan["shards"] == SHARDS and plan["inputs"] == "same"
