"""The commands explain themselves, answer bad input in one line, and do what they are asked."""

import json
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from commands import DIGITS, Kill, assert_refused, devices, digits, finish, start, start_python
from PIL import Image
from tiny import hurry_classifier

from sra_jax.data.embedded import EMBEDDED, load_digits
from sra_jax.jobs.evaluate import EvaluateRequest, evaluate


def test_the_package_is_cheap_to_import_and_lists_its_commands():
    result = finish(start_python(["-m", "sra_jax", "--help"]))
    assert (result.code, result.err) == (0, "")
    listed = re.findall(r"^  (\w+)  +\S", result.out, re.MULTILINE)
    assert listed == ["train", "sample", "evaluate", "probe", "encode", "convert", "compile"]
    program = """
import sys, sra_jax
assert "jax" not in sys.modules and sra_jax.__version__
assert set(sra_jax.METHODS) >= {"sra"}
from sra_jax.run.directory import load_model
assert sra_jax.load_model is load_model
"""
    assert finish(start_python(["-c", program])) == (0, "", "")


@pytest.mark.parametrize("name", ["train", "sample", "evaluate"])
def test_help_shows_an_example_and_the_flags(forks, name):
    result = forks.run(name, ["--help"])
    assert (result.code, result.err) == (0, "")
    assert f"python -m sra_jax {name} --" in result.out
    expected = {
        "train": "config workdir",
        "sample": "workdir out grid num labels solver solver_steps guidance weights checkpoint",
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
    assert_refused(results["evaluate"], f"no file or folder {tmp_path}/none.npz")
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
    "weight": (train_flags("--config.method.sra.weight=nan"), "weight is nan", "at least 0"),
    "blocks": (train_flags("--config.method.sra.student_block=9"), "student block 9", "block 8"),
    "depth": (train_flags("--config.method.sra.teacher_block=13"), "is 13", "12 blocks"),
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
    "gap": (train_flags("--config.method.sra.gap_max=1.2", config="dit_sra"), "1.2", "[0, 1]"),
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


RENAMED = {
    "config": ("train", "--config.sra.gap=fixed", "--config.method.sra.gap"),
    "solver": ("sample", "--steps=4", "--solver_steps"),
    "sampled step": ("sample", "--step=4", "--checkpoint"),
    "measured step": ("evaluate", "--step=4", "--checkpoint"),
    "probed steps": ("probe", "--steps=4", "--checkpoints"),
    "exported step": ("convert", "--step=4", "--checkpoint"),
}


@pytest.mark.parametrize(("name", "flag", "now"), RENAMED.values(), ids=RENAMED)
def test_an_old_flag_is_answered_with_its_new_name(forks, name, flag, now):
    assert_refused(forks.run(name, [flag]), f"{flag.partition('=')[0]} is called {now} now")


def test_an_old_value_is_answered_with_its_new_name(forks, tmp_path):
    flags = ["--samples=x.npz", "--reference=embedded:digits", "--features=probe"]
    assert_refused(forks.run("evaluate", flags), "features=probe is called classifier now")
    flags = digits(tmp_path / "new", evaluation__features="probe")
    assert_refused(forks.run("train", flags), "features=probe is called classifier now")


BAD_SAMPLE = {
    "nothing": ([], "--workdir is missing", "--help"),
    "no run": (["--workdir={tmp}"], "{tmp} holds no run", "config.json"),
    "step": (["--checkpoint=5"], "no step 5", "[3, 6]"),
    "label": (["--labels=3,10"], "label 10", "0 to 9"),
    "negative label": (["--labels=-1"], "label -1", "0 to 9"),
    "no label": (["--labels=cats"], "'cats'", "balanced"),
    "num": (["--num=0"], "num is 0", "at least 1"),
    "seed": (["--seed=-1"], "seed is -1", "[0, 2**32)"),
    "text": (["--num=ten"], "cannot take --num=ten, expected an integer", "--help"),
    "empty": (["--num="], "cannot take --num=, expected an integer", "--help"),
    "no number": (["--guidance=x"], "cannot take --guidance=x, expected a number", "--help"),
    "solver": (["--solver=ddim"], "'ddim'", "sde, euler, heun"),
    "steps": (["--solver_steps=0"], "steps is 0", "at least 2"),
    "channels": (["--guidance_channels=9"], "guidance_channels is 9", "1 channels; 0 guides all"),
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
    (tmp_path / "config.json").write_text(json.dumps(saved | {"format_version": 3}))
    assert_refused(forks.run("sample", flags), "format 3", "update sra_jax")
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
        "text.npz": (None, "not an .npz with arr_0 (it is of another kind"),
        "names.npz": ({"images": np.zeros(3)}, "arr_0"),
        "float.npz": ({"arr_0": np.zeros((3, 8, 8, 1)), "labels": np.zeros(3)}, "uint8"),
        "one.npz": ({"arr_0": np.zeros((1, 8, 8, 1), np.uint8), "labels": np.zeros(1)}, "1 images"),
        "large.npz": ({"arr_0": np.zeros((3, 16, 16, 1), np.uint8)}, "16x16"),
    }
    for name, (arrays, part) in bad.items():
        path = tmp_path / name
        np.savez(path, **arrays) if arrays else path.write_text("not arrays")
        flags = [f"--samples={path}", "--reference=embedded:digits"]
        assert_refused(forks.run("evaluate", flags), path, part)
    assert_refused(forks.run("evaluate", [f"--samples={good}"]), "--reference is missing")
    np.savez(tmp_path / "fewer.npz", arr_0=np.zeros((3, 8, 8, 1), np.uint8), labels=np.zeros(2))
    for name, part in {"none.npz": "no file", "fewer.npz": "holds 2 labels"}.items():
        flags = [f"--samples={good}", f"--reference={tmp_path / name}"]
        assert_refused(forks.run("evaluate", flags), name, part)


def test_samples_are_written_and_measured(forks, finished, tmp_path, monkeypatch, capsys):
    out, grid = tmp_path / "made" / "out.npz", tmp_path / "made" / "grid.png"
    request = [
        f"--workdir={finished}",
        "--num=8",
        "--labels=3,1,4",
        "--solver=euler",
        "--solver_steps=3",
    ]
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
    assert f"{out} is there already, of the same request: sampling it again" in result.out
    assert out.read_bytes() == before
    for change, told in {
        "--seed=1": "(seed was 0, is 1); choose another --out",
        "--num=7": "num was 8, is 7",
        "--checkpoint=3": "(step was 6, is 3)",
    }.items():
        refused = forks.run("sample", [*request, f"--out={out}", change])
        assert_refused(refused, f"{out} does not belong to this request", told)

    older = tmp_path / "older.npz"
    result = forks.run(
        "sample", [*request, f"--out={older}", "--weights=student", "--checkpoint=3"]
    )
    assert result.code == 0 and "student weights of step 3" in result.out
    assert (np.load(older)["arr_0"] != written["arr_0"]).any()

    hurry_classifier(monkeypatch, 100)
    real, distances = tmp_path / "real.npz", []
    np.savez(real, arr_0=load_digits()[0][:8])
    for samples in (out, real):
        evaluate(EvaluateRequest(samples=str(samples), reference="embedded:digits", metrics="fid"))
        report = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert report["samples"] == str(samples) and report["images"] == 8
        distances.append(report["classifier_fid"])
    assert distances[0] > 2 * distances[1] > 0  # six steps make no digits


def test_sampling_stopped_by_a_signal_goes_on(forks, finished, tmp_path):
    """It comes while JAX's threads compute the chunks after the first."""
    flags = [f"--workdir={finished}", "--num=62", "--chunk=2", "--solver_steps=20", "--seed=3"]
    whole, out = tmp_path / "whole.npz", tmp_path / "stopped.npz"
    assert forks.run("sample", [*flags, f"--out={whole}"]).code == 0
    for number, code, name in ((signal.SIGTERM, 75, "SIGTERM"), (signal.SIGINT, 130, "Ctrl-C")):
        kill = Kill(0, str(tmp_path / "stopped.npz.parts"), r"\d+\.npy", number)
        stopped = forks.run("sample", [*flags, f"--out={out}"], kill)
        assert stopped.code == code and not out.exists()
        assert stopped.err == f"error: stopped by {name}; run the same command again\n"
    result = forks.run("sample", [*flags, f"--out={out}"])
    assert result.code == 0 and re.search(r"\d+ of 31 chunks are there", result.out), result.out
    assert out.read_bytes() == whole.read_bytes()
