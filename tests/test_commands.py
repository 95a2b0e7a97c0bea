"""The commands answer bad input in one line, guard their workdir, and never lose a good step."""

import hashlib
import itertools
import json
import re
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from commands import DEADLINE, DIGITS, Forks, Kill, devices, digits, finish, saved_arrays, start
from PIL import Image

from sra_jax.data.embedded import EMBEDDED
from sra_jax.data.latents import LatentSpec, open_latents, write_latents
from sra_jax.data.pipeline import batches

RECORDS = 48
SPEC = LatentSpec(
    codec="pixels",
    scale=1.0,
    shift=0.0,
    latent_shape=(8, 8, 1),
    resolution=8,
    image_channels=1,
    num_classes=10,
    dtype="float32",
)


@pytest.fixture(scope="module")
def forks():
    with Forks() as server:
        yield server


@pytest.fixture(scope="module")
def finished(forks, tmp_path_factory):
    """The workdir of a run of six steps, to look at only."""
    workdir = tmp_path_factory.mktemp("finished")
    flags = digits(workdir, train__steps=6, train__log_every=2, train__checkpoint_every=3)
    result = forks.run("train", flags)
    assert (result.code, result.err) == (0, "")
    assert "step 2/6" in result.out and "finished: step 6 is saved" in result.out
    assert str(workdir) in result.out
    return workdir


@pytest.fixture
def copied(finished, tmp_path):
    """The same, to write to."""
    return shutil.copytree(finished, tmp_path / "run")


def assert_refused(result, *parts):
    """Exit code 2, one line on stderr that holds all `parts`, nothing compiled."""
    assert result.code == 2, result
    (line,) = result.err.splitlines()
    assert line.startswith("error: ")
    for part in parts:
        assert str(part) in line, line
    assert "compil" not in result.out


@pytest.mark.parametrize("name", ["train", "sample", "evaluate"])
def test_help_shows_an_example_and_the_flags(forks, name):
    result = forks.run(name, ["--help"])
    assert (result.code, result.err) == (0, "")
    assert f"python -m sra_jax.{name} --" in result.out
    expected = {
        "train": "config workdir",
        "sample": "workdir out grid num labels solver steps guidance guidance_interval weights",
        "evaluate": "samples reference",
    }
    if name == "evaluate":
        assert all(embedded in result.out for embedded in EMBEDDED)
    for flag in expected[name].split():
        assert f"--{flag}: " in result.out


def test_bad_input_ends_real_processes_with_code_2(tmp_path):
    runs = {
        "train": (digits(tmp_path / "new", train__batch_size=20), devices(8)),
        "sample": ([f"--workdir={tmp_path}/none", f"--out={tmp_path}/out.npz"], {}),
        "evaluate": ([f"--samples={tmp_path}/none.npz", "--reference=embedded:digits"], {}),
    }
    started = {name: start(name, flags, **extra) for name, (flags, extra) in runs.items()}
    results = {name: finish(process) for name, process in started.items()}
    assert_refused(results["train"], "batch size 20", "8 devices", "multiple of 8")
    assert_refused(results["sample"], f"no workdir {tmp_path}/none", "train first")
    assert_refused(results["evaluate"], f"no file {tmp_path}/none.npz")
    assert list(tmp_path.iterdir()) == []


def train_flags(*flags, config="sit_sra", argument="S/2"):
    path = Path(DIGITS.removeprefix("--config=")).with_name(f"{config}.py")
    return [f"--config={path}:{argument}", "--workdir={tmp}/new", *flags]


BAD_TRAIN = {
    "nothing": ([], "--config is missing", "--help"),
    "no workdir": ([DIGITS], "--workdir is missing", "--help"),
    "no config": (
        ["--config={tmp}/c.py:XL/2", "--workdir={tmp}/new"],
        "cannot load --config: No such file or directory: '{tmp}/c.py'; name a file",
        "--config=configs/digits.py",
    ),
    "no config to change": (
        ["--config={tmp}/c.py", "--workdir={tmp}/new", "--config.train.steps=3"],
        "cannot load --config: No such file or directory: '{tmp}/c.py'; name a file",
        "--config=configs/digits.py",
    ),
    "config folder": (["--config={tmp}", "--workdir={tmp}/new"], "Is a directory: '{tmp}'", "name"),
    "stray": (train_flags("steps=3"), "'steps=3'", "--name=value"),
    "flag": (train_flags("--wrkdir=x"), "wrkdir", "workdir"),
    "field": (train_flags("--config.model.dpth=3"), "'dpth'", "did you mean 'depth'"),
    "far field": (train_flags("--config.model.zzz=3"), "'zzz'", "config field"),
    "section": (train_flags("--config.modle.depth=3"), "'modle'", "'model'"),
    "type": (
        train_flags("--config.model.depth=three"),
        "model.depth=three, expected an",
        "integer",
    ),
    "truth": (
        train_flags("--config.train.skip_nonfinite=maybe"),
        "cannot take --config.train.skip_nonfinite=maybe, expected True or False",
        "--help",
    ),
    "whole section": (
        train_flags("--config.train=3"),
        "--config.train=3, expected a field",
        "as in",
    ),
    "weight": (train_flags("--config.sra.weight=nan"), "weight is nan", "at least 0"),
    "blocks": (train_flags("--config.sra.student_block=9"), "student block 9", "block 8"),
    "depth": (train_flags("--config.sra.teacher_block=13"), "is 13", "12 blocks"),
    "patch": (train_flags("--config.model.patch_size=5"), "patch size 5", "32"),
    "recipe": (train_flags(argument="S/2,recipe=papr"), "'papr'", "did you mean 'paper'"),
    "model": (train_flags(argument="M/2"), "'M'", "S, B, L, XL"),
    "solver": (train_flags("--config.sampling.solver=ode"), "'ode'", "sde, euler, heun"),
    "interval": (
        train_flags("--config.sampling.guidance_interval=(0.7, 0.1)"),
        "0.7,0.1",
        "LOW <= HIGH",
    ),
    "respacing": (
        train_flags("--config.sampling.steps=2000", config="dit_sra"),
        "2000",
        "1 to 1000",
    ),
    "gap": (train_flags("--config.sra.gap_max=1.2", config="dit_sra"), "1.2", "[0, 1]"),
    "no data": (train_flags("--config.data.path={tmp}/none"), "{tmp}/none", "data set"),
    "mesh": (train_flags("--config.mesh.fsdp=3"), "fsdp 3", "1 device"),
}


@pytest.mark.parametrize("flags, value, advice", BAD_TRAIN.values(), ids=BAD_TRAIN)
def test_train_refuses(forks, tmp_path, flags, value, advice):
    flags, value = [flag.format(tmp=tmp_path) for flag in flags], value.format(tmp=tmp_path)
    assert_refused(forks.run("train", flags), value, advice)
    assert list(tmp_path.iterdir()) == []


BROKEN_CONFIGS = {
    "raises": (
        "def get_config(): raise ZeroDivisionError('no way')",
        "mine.py fails with ZeroDivisionError: no way; mend it, or name another",
    ),
    "syntax": ("def get_config(: pass", "mine.py fails with SyntaxError: invalid syntax"),
    "no function": ("x = 1", "get_config"),
    "no config": ("def get_config(): return {'a': 1}", "ConfigDict"),
    "empty": (
        "from ml_collections import ConfigDict\ndef get_config(): return ConfigDict()",
        "config lacks model",
    ),
}


@pytest.mark.parametrize("text, part", BROKEN_CONFIGS.values(), ids=BROKEN_CONFIGS)
def test_train_refuses_a_broken_config_file(forks, tmp_path, text, part):
    path = tmp_path / "mine.py"
    path.write_text(text + "\n")
    assert_refused(forks.run("train", [f"--config={path}", f"--workdir={tmp_path}/new"]), part)


BAD_SAMPLE = {
    "nothing": ([], "--workdir is missing", "--help"),
    "no run": (["--workdir={tmp}"], "{tmp} holds no run", "config.json"),
    "step": (["--step=5"], "no step 5", "[3, 6]"),
    "label": (["--labels=3,10"], "label 10", "0 to 9"),
    "negative label": (["--labels=-1"], "label -1", "0 to 9"),
    "no label": (["--labels=cats"], "'cats'", "balanced"),
    "num": (["--num=0"], "num 0", "at least 1"),
    "seed": (["--seed=-1"], "seed is -1", "[0, 2**32)"),
    "text": (["--num=ten"], "cannot take --num=ten, expected an integer", "--help"),
    "empty": (["--num="], "cannot take --num=, expected an integer", "--help"),
    "no number": (["--guidance=x"], "cannot take --guidance=x, expected a number", "--help"),
    "solver": (["--solver=ddim"], "'ddim'", "sde, euler, heun"),
    "steps": (["--steps=0"], "steps is 0", "at least 2"),
    "guidance": (["--guidance=0.5"], "guidance is 0.5", "at least 1"),
    "reversed": (["--guidance_interval=0.7,0"], "0.7,0.0", "LOW <= HIGH"),
    "interval": (["--guidance_interval=0.7"], "'0.7'", "LOW,HIGH"),
    "weights": (["--weights=emma"], "'emma'", "did you mean 'ema'"),
    "out": (["--out={tmp}/out.png"], "out.png", ".npz"),
    "grid": (["--grid={tmp}/grid.npz"], "grid.npz", ".png"),
    "nowhere": (["--out={tmp}/file/out.npz"], "{tmp}/file/out.npz", "cannot write"),
}


@pytest.mark.parametrize("flags, value, advice", BAD_SAMPLE.values(), ids=BAD_SAMPLE)
def test_sample_refuses(forks, finished, tmp_path, flags, value, advice):
    (tmp_path / "file").touch()
    defaults = [f"--workdir={finished}", f"--out={tmp_path}/out.npz"] if flags else []
    flags = [flag.format(tmp=tmp_path) for flag in flags]  # the last of two equal flags counts
    result = forks.run("sample", [*defaults, *flags])
    assert_refused(result, value.format(tmp=tmp_path), advice)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_sample_refuses_a_run_without_a_checkpoint(forks, finished, tmp_path):
    shutil.copy(finished / "config.json", tmp_path)
    flags = [f"--workdir={tmp_path}", f"--out={tmp_path}/out.npz"]
    assert_refused(forks.run("sample", flags), "no checkpoint", tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(saved | {"format_version": 2}))
    assert_refused(forks.run("sample", flags), "format 2", "update sra_jax")
    (tmp_path / "config.json").write_text("{")
    assert_refused(forks.run("sample", flags), f"{tmp_path}/config.json is damaged")
    for section, value in {
        "data": {"dtype": "int8"},
        "config": {"train": {"steps": "ten"}},
    }.items():
        section_of = {**saved, section: {**saved[section], **value}}
        (tmp_path / "config.json").write_text(json.dumps(section_of))
        assert_refused(forks.run("sample", flags), f"{tmp_path}/config.json is damaged")


def test_evaluate_refuses(forks, tmp_path):
    good = tmp_path / "good.npz"
    np.savez(good, arr_0=np.zeros((3, 8, 8, 1), np.uint8), labels=np.zeros(3, np.int32))
    bad = {
        "text.npz": (None, "not an .npz with arr_0 and labels (it holds text or Python objects"),
        "names.npz": ({"images": np.zeros(3)}, "arr_0"),
        "float.npz": ({"arr_0": np.zeros((3, 8, 8, 1)), "labels": np.zeros(3)}, "uint8"),
        "fewer.npz": ({"arr_0": np.zeros((3, 8, 8, 1), np.uint8), "labels": np.zeros(2)}, "(2,)"),
        "one.npz": ({"arr_0": np.zeros((1, 8, 8, 1), np.uint8), "labels": np.zeros(1)}, "1 images"),
        "large.npz": (
            {"arr_0": np.zeros((3, 16, 16, 1), np.uint8), "labels": np.zeros(3, int)},
            "(16, 16, 1)",
        ),
    }
    for name, (arrays, part) in bad.items():
        path = tmp_path / name
        np.savez(path, **arrays) if arrays else path.write_text("not arrays")
        flags = [f"--samples={path}", "--reference=embedded:digits"]
        assert_refused(forks.run("evaluate", flags), path, part)
    assert_refused(forks.run("evaluate", [f"--samples={good}"]), "--reference is missing")
    flags = [f"--samples={good}", f"--reference={tmp_path}/none.npz"]
    assert_refused(forks.run("evaluate", flags), "none.npz")


def test_samples_are_written_and_measured(forks, finished, tmp_path):
    out, grid = tmp_path / "made" / "out.npz", tmp_path / "made" / "grid.png"
    request = [f"--workdir={finished}", "--num=8", "--labels=3,1,4", "--solver=euler", "--steps=3"]
    result = forks.run("sample", [*request, f"--out={out}", f"--grid={grid}"])
    assert (result.code, result.err) == (0, "")
    assert "ema weights of step 6" in result.out
    assert f"{out}\n" in result.out and f"{grid}\n" in result.out
    written = np.load(out)
    assert written["arr_0"].dtype == np.uint8 and written["arr_0"].shape == (8, 8, 8, 1)
    np.testing.assert_array_equal(written["labels"], [3, 1, 4, 3, 1, 4, 3, 1])
    assert Image.open(grid).size == (8 * 50 + 2, 52)

    before = out.read_bytes()
    result = forks.run("sample", [*request, f"--out={out}"])
    assert (result.code, result.err) == (0, "")
    assert f"{out} is there already, of the same request: drawing it again" in result.out
    assert out.read_bytes()[-64:] == before[-64:]  # which tells the request
    np.testing.assert_array_equal(np.load(out)["arr_0"], written["arr_0"])
    for change in ("--seed=1", "--num=7", "--step=3"):
        refused = forks.run("sample", [*request, f"--out={out}", change])
        assert_refused(refused, f"{out} holds what this request does not draw; choose another")

    older = tmp_path / "older.npz"
    result = forks.run("sample", [*request, f"--out={older}", "--weights=student", "--step=3"])
    assert result.code == 0 and "student weights of step 3" in result.out
    assert (np.load(older)["arr_0"] != written["arr_0"]).any()

    result = forks.run("evaluate", [f"--samples={out}", "--reference=embedded:digits"])
    assert (result.code, result.err) == (0, "")
    report = json.loads(result.out.splitlines()[-1])
    assert report["samples"] == str(out) and 0 <= report["class_agreement"] <= 1
    assert report["frechet"] > 3 * report["frechet_floor"] > 0  # six steps draw no digits


def write(path, changes=(), records=RECORDS, seed=0, **spec):
    """Writes a data set of `records` random latents; `changes` maps a record to its std."""
    spec = LatentSpec(**{**vars(SPEC), **spec})
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
    assert_refused(refused, "the data's bytes are others")
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
    flags = digits(copied, train__steps=12, model__width=32, sra__weight=0.5, train__batch_size=16)
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


def test_a_refused_run_leaves_nothing_in_the_way_of_the_right_one(forks, tmp_path):
    """Neither the wrong set, nor a folder: a set that lies there is that of its name."""
    shapes = {"data__path": "embedded:shapes", "train__steps": 1}
    refused = forks.run("train", digits(tmp_path / "run", **shapes))
    assert_refused(refused, "embedded:shapes holds latents of shape (32, 32, 3)", "(8, 8, 1)")
    assert not (tmp_path / "run").exists()
    flags = digits(tmp_path / "run", train__batch_size=100_000, train__steps=1)
    assert_refused(forks.run("train", flags), "batch")
    assert forks.run("train", digits(tmp_path / "run", train__steps=1)).code == 0


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
        lock, deadline = tmp_path / ".lock", time.monotonic() + DEADLINE
        while not (lock.exists() and lock.read_text() == str(first.pid)):
            assert first.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
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
    numbered = open_latents(write(tmp_path / "numbered", {i: i for i in range(RECORDS)}))
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


def test_sampling_stopped_by_sigterm_goes_on(forks, finished, tmp_path):
    """Killed while JAX's threads compute the chunks after the first."""
    flags = [f"--workdir={finished}", "--num=62", "--chunk=2", "--steps=20", "--seed=3"]
    whole, out = tmp_path / "whole.npz", tmp_path / "stopped.npz"
    assert forks.run("sample", [*flags, f"--out={whole}"]).code == 0
    kill = Kill(0, str(tmp_path / "stopped.npz.parts"), r"\d+\.npy", signal.SIGTERM)
    stopped = forks.run("sample", [*flags, f"--out={out}"], kill)
    assert stopped.code == 75 and not out.exists()
    assert stopped.err == "error: stopped by SIGTERM; the same command goes on from what is saved\n"
    result = forks.run("sample", [*flags, f"--out={out}"])
    assert result.code == 0 and re.search(r"\d+ of 31 chunks are there", result.out), result.out
    assert out.read_bytes() == whole.read_bytes()
