"""A run's workdir is guarded, and no good step of it is lost."""

import dataclasses
import hashlib
import itertools
import json
import shutil

import numpy as np
import pytest
from commands import DIGITS, assert_refused, devices, digits, saved_arrays, start, wait_until
from tiny import pixel_spec

from sra_jax.data.pipeline import batches
from sra_jax.data.records import open_records, write_latents

RECORDS = 48
SPEC = pixel_spec(8, num_classes=10, dtype="float32")


@pytest.fixture
def copied(finished, tmp_path):
    """The same, to write to."""
    return shutil.copytree(finished, tmp_path / "run")


def write(path, changes=(), records=RECORDS, seed=0, **spec):
    """Writes a data set of `records` random latents; `changes` maps a record to its std."""
    spec = dataclasses.replace(SPEC, **spec)
    height, width, channels = spec.latent_shape
    moments = np.zeros((records, height, width, 2 * channels), np.float32)
    moments[..., :channels] = np.random.default_rng(seed).normal(
        size=(records, height, width, channels)
    )
    for record, std in dict(changes).items():
        moments[record, ..., channels:] = std
    write_latents(path, spec, [[(moments, np.arange(records) % spec.num_classes)]])
    return path


def test_train_refuses_data_that_do_not_fit(forks, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    write(tmp_path / "wide", latent_shape=(16, 16, 1))
    write(tmp_path / "many", num_classes=20)
    write(tmp_path / "few", records=5)
    write(tmp_path / "cut")
    (records,) = (tmp_path / "cut").glob("*array_record*")
    records.write_bytes(records.read_bytes()[:1000])
    expected = {
        "empty": "holds no data set",
        "file": "is a file, expected the directory",
        "wide": "(16, 16, 1), the config expects (8, 8, 1)",
        "many": "20 classes, the config expects 10",
        "few": "5 records",
        "cut": "damaged",
    }
    for name, part in expected.items():
        flags = digits(tmp_path / "new", data__path=tmp_path / name)
        assert_refused(forks.run("train", flags), part)


def test_a_refused_run_does_not_block_the_corrected_one(forks, tmp_path):
    for change, part in (
        ({"model__width": 18}, "width 18"),
        ({"data__path": "embedded:shapes"}, "shapes holds latents of shape (32, 32, 3)"),
        ({"train__batch_size": 2000}, "1797 records"),
        ({"data__latent_shape": "(8, 8, 3)"}, "(8, 8, 3)"),
        ({"data__num_classes": 12}, "12"),
    ):
        refused = forks.run("train", digits(tmp_path / "run", train__steps=2, **change))
        assert_refused(refused, part)
    result = forks.run("train", digits(tmp_path / "run", train__steps=2))
    assert (result.code, result.err) == (0, "") and "finished: step 2" in result.out


def test_a_finished_run_says_so(forks, finished):
    config = (finished / "config.json").read_bytes()
    for steps in (6, 4):
        result = forks.run("train", digits(finished, train__steps=steps, train__log_every=2))
        assert (result.code, result.err) == (0, "")
        assert "finished" in result.out and "6 steps" in result.out
        assert "compil" not in result.out
        assert (finished / "config.json").read_bytes() == config


def test_the_bytes_of_the_data_are_remembered(forks, copied, tmp_path):
    """The same metadata, another draw: as after encoding anew with other weights."""
    workdir = tmp_path / "new"
    first, second = (write(tmp_path / f"set{seed}", seed=seed) for seed in (0, 1))
    assert forks.run("train", digits(workdir, data__path=first, train__steps=2)).code == 0
    refused = forks.run("train", digits(workdir, data__path=second, train__steps=4))
    assert_refused(refused, "the record files have changed")
    first.rename(tmp_path / "moved")
    moved = forks.run("train", digits(workdir, data__path=tmp_path / "moved", train__steps=4))
    assert (moved.code, moved.err) == (0, "")


def test_other_code_is_told_of(forks, copied):
    saved = json.loads((copied / "config.json").read_text())
    other = saved | {"code": saved["code"] | {"jax": "0.4.0"}}
    (copied / "config.json").write_text(json.dumps(other))
    for told in (True, False):  # then it is remembered
        result = forks.run("train", digits(copied, train__steps=7 if told else 8))
        assert (result.code, result.err) == (0, "")
        assert ("other code than before: jax was 0.4.0, is " in result.out) == told


def test_another_model_or_data_is_refused_by_its_fields(forks, copied, tmp_path):
    config = (copied / "config.json").read_bytes()
    flags = digits(
        copied, train__steps=12, model__width=32, method__sra__weight=0.5, train__batch_size=16
    )
    assert_refused(
        forks.run("train", flags),
        "model.width was 16, is 32",
        "sra.weight was 0.2, is 0.5",
        "train.batch_size was 8, is 16",
        "another --workdir",
    )
    other = write(tmp_path / "other")
    flags = digits(copied, train__steps=12, data__path=other)
    assert_refused(forks.run("train", flags), f"data.num_examples was 1797, is {RECORDS}")
    dit = digits(copied, train__steps=12, config=f"{DIGITS}:dit")
    assert_refused(forks.run("train", dit), "process.name was interpolant, is ddpm")
    assert (copied / "config.json").read_bytes() == config


def test_what_does_not_change_the_numbers_may_change(forks, copied):
    flags = digits(
        copied,
        train__steps=8,
        train__log_every=1,
        train__checkpoint_every=4,
        train__keep=5,
        train__microbatches=2,
        model__remat="full",
        mesh__data=2,
        mesh__fsdp=2,
        sampling__guidance=3.0,
        sampling__solver="euler",
        data__path=copied / "data/digits",
    )
    result = forks.run("train", flags, **devices(4))
    assert (result.code, result.err) == (0, "")
    assert "resuming from step 6" in result.out and "step 7/8" in result.out
    assert json.loads((copied / "config.json").read_text())["config"]["sampling"]["guidance"] == 3.0
    assert saved_arrays(copied, 8)["['step']"] == 8


def test_a_second_run_in_the_same_workdir_is_refused(forks, tmp_path):
    flags = digits(tmp_path, train__steps=1_000_000)
    first = start("train", flags)
    try:
        lock = tmp_path / ".lock"
        wait_until(lambda: lock.exists() and lock.read_text() == str(first.pid), first)
        assert_refused(forks.run("train", flags), f"process {first.pid}", tmp_path)
        assert first.poll() is None
    finally:
        first.kill()
        first.communicate()


def digests(directory):
    """A digest of every file's bytes."""
    return {
        path.relative_to(directory): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def poison(tmp_path, step):
    """A data set of which one record overflows float32, and is first drawn for `step`."""
    numbered = open_records(write(tmp_path / "numbered", {i: i for i in range(RECORDS)}))
    batch = next(itertools.islice(batches(numbered, 8, 0, step - 1), 1))
    return write(tmp_path / "poisoned", {int(batch["moments"][0, 0, 0, 1]): 3e38})


def test_a_loss_that_is_not_finite_stops_the_run(forks, tmp_path):
    workdir, data = tmp_path / "run", poison(tmp_path, step=6)  # a step that would be saved
    lengths = {"train__steps": 40, "train__log_every": 4, "train__checkpoint_every": 3}
    flags = digits(workdir, data__path=data, **lengths)
    result = forks.run("train", flags)
    assert result.code == 1
    (line,) = result.err.splitlines()
    assert "at step 6" in line and ("is inf" in line or "is nan" in line)
    assert "last good checkpoint is step 3" in line

    good = digests(workdir / "checkpoints")
    assert {path.parts[0] for path in good} == {"3"}
    assert all(np.isfinite(array).all() for array in saved_arrays(workdir, 3).values())
    again = forks.run("train", flags)
    assert "resuming from step 3" in again.out
    assert (again.code, again.err) == (result.code, result.err)
    assert digests(workdir / "checkpoints") == good


def test_a_step_that_is_not_finite_can_be_skipped(forks, tmp_path):
    workdir, data = tmp_path / "run", poison(tmp_path, step=6)
    lengths = {"train__steps": 5, "train__log_every": 1}
    flags = digits(workdir, data__path=data, **lengths)
    assert forks.run("train", flags).code == 0
    flags = digits(workdir, data__path=data, **lengths | {"train__steps": 8})
    stopped = forks.run("train", flags)
    assert stopped.code == 1 and "--config.train.skip_nonfinite=True" in stopped.err
    result = forks.run("train", [*flags, "--config.train.skip_nonfinite=True"])
    assert (result.code, result.err) == (0, "")
    assert "skipped step 6 (1 in all): " in result.out
    assert "2 of 3 steps were skipped" in result.out  # the next epoch begins with the same record
    assert "finished: step 8 is saved" in result.out
    assert all(np.isfinite(array).all() for array in saved_arrays(workdir, 8).values())


def test_a_run_that_fails_before_its_first_checkpoint_says_so(forks, tmp_path):
    workdir, data = tmp_path / "run", poison(tmp_path, step=2)
    result = forks.run("train", digits(workdir, data__path=data, train__log_every=1))
    assert result.code == 1
    (line,) = result.err.splitlines()
    assert "at step 2" in line and "nothing was saved yet" in line
    assert not list((workdir / "checkpoints").glob("*"))
