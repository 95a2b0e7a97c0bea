"""PyTorch checkpoints of every layout become runs like any other, and runs become checkpoints."""

import logging
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from converted import assert_same_tree, converted, loaded, loaded_head
from golden import FEATURES, relative_error
from published import (
    ARGS,
    as_original_sit,
    tensors,
    training_checkpoint,
    with_projectors,
    without_head,
)
from safetensors.numpy import load_file
from safetensors.torch import save_file

from sra_jax.core.errors import InputError
from sra_jax.jobs.convert import ConvertRequest, convert
from sra_jax.models import DiT
from sra_jax.torch_weights import from_torch


@pytest.fixture(autouse=True)
def tell(caplog):
    caplog.set_level(logging.INFO, logger="sra_jax")


def assert_same_tensors(state, expected):
    assert set(state) == set(expected)
    for name, array in expected.items():
        assert state[name].dtype == np.float32 and state[name].shape == array.shape, name
        assert state[name].tobytes() == np.ascontiguousarray(array).tobytes(), name


def nudged(state):
    """As training nudges it: the EMA drifts from its position table by rounding."""
    drift = np.random.default_rng(7).uniform(-1e-4, 1e-4, state["pos_embed"].shape)
    return state | {"pos_embed": (state["pos_embed"] + drift).astype(np.float32)}


LAYOUTS = {
    "SRA's SiT": ("sit", "sra", lambda s: s),
    "SRA's DiT": ("dit", "sra", lambda s: s),
    "REPA's SiT": ("sit", "repa", with_projectors),
    "the original SiT": ("sit", "sit", lambda s: as_original_sit(s, 2, 4)),
    "the original DiT": ("dit", "dit", without_head),
}


def save(path, form, student, ema, args):
    """In one of the forms that checkpoints are published in."""
    match form:
        case "training":
            torch.save(training_checkpoint(student, ema, args), path)
        case "ema alone":
            torch.save({"ema": tensors(ema)}, path)
        case "bare":
            torch.save(tensors(ema), path)
        case "wrapped":
            torch.save({f"module.{k}": v for k, v in tensors(ema).items()}, path)
        case "safetensors":
            path = path.with_suffix(".safetensors")
            save_file(tensors(ema), path)
    return path


FORMS = [(name, "training") for name in LAYOUTS]
FORMS += [("SRA's SiT", form) for form in ("ema alone", "bare", "wrapped", "safetensors")]
FORMS += [("the original SiT", "safetensors"), ("the original DiT", "bare")]


def inputs_of(golden):
    """Images, times and condition of the golden forward pass."""
    return golden.images("fwd/x"), golden["fwd/t"], {"labels": golden.jax("fwd/y", jnp.int32)}


@pytest.mark.parametrize("name, form", FORMS)
def test_every_layout_gives_the_golden_outputs(request, tmp_path, name, form):
    kind, layout, remake = LAYOUTS[name]
    golden = request.getfixturevalue(kind)
    state = golden.state_dict("student")
    path = save(
        tmp_path / "x.pt", form, remake(golden.state_dict("teacher")), remake(state), ARGS[layout]
    )
    trained, params = loaded(converted(path, tmp_path / "run"))
    assert trained.trunk.config == golden.config
    direct = from_torch(state, golden.config)
    if layout == "sra":
        assert_same_tree(loaded_head(tmp_path / "run"), direct["method"]["sra"])
    else:
        assert loaded_head(tmp_path / "run") is None
    expected = direct["trunk"]
    if layout == "sit":  # its time is turned twice on the way, each time rounded once
        assert (
            relative_error(*(p["time_embed"]["fc1"]["kernel"] for p in (params, expected))) < 1e-6
        )
        params["time_embed"]["fc1"] = expected["time_embed"]["fc1"]
    assert_same_tree(params, expected)
    output = trained.trunk.apply(trained.params, *inputs_of(golden))
    expected = golden.images("fwd/velocity" if kind == "sit" else "fwd/output")
    assert relative_error(output.prediction, expected) < FEATURES
    _, student = loaded(tmp_path / "run", "student")
    if form == "training":
        assert (
            relative_error(
                student["final"]["linear"]["kernel"], params["final"]["linear"]["kernel"]
            )
            > 0.1
        )
    else:
        assert_same_tree(student, jax.tree.map(np.asarray, trained.params))


@pytest.mark.parametrize("kind", ["sit", "dit"])
def test_a_position_table_that_has_drifted_is_kept(request, tmp_path, caplog, kind):
    golden = request.getfixturevalue(kind)
    student, ema = golden.state_dict("student"), nudged(golden.state_dict("teacher"))
    torch.save(training_checkpoint(student, ema, {}), tmp_path / "x.pt")
    trained, params = loaded(converted(tmp_path / "x.pt", tmp_path / "run"))
    direct = from_torch(ema, golden.config)["trunk"]
    assert_same_tree(params, direct)
    assert "position table of ema as stored, within 1.0e-04 of its formula" in caplog.text
    inputs = inputs_of(golden)
    ours = trained.trunk.apply(trained.params, *inputs).prediction
    expected = DiT(golden.config).apply(direct, *inputs).prediction
    np.testing.assert_array_equal(ours, expected)
    converted(tmp_path / "run", tmp_path / "back.safetensors")
    assert_same_tensors(load_file(tmp_path / "back.safetensors"), ema)
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


def test_a_position_table_far_off_is_told(tmp_path, sit, caplog):
    state = sit.state_dict("student")
    state["pos_embed"] = state["pos_embed"] + np.float32(2e-3)
    torch.save(tensors(state), tmp_path / "x.pt")
    _, params = loaded(converted(tmp_path / "x.pt", tmp_path / "run"))
    np.testing.assert_array_equal(params["pos_embed"], state["pos_embed"][0])
    (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "2.0e-03 off its formula" in warning.getMessage()


@pytest.mark.parametrize("ending", [".pt", ".safetensors"])
@pytest.mark.parametrize("kind", ["sit", "dit"])
def test_there_and_back(request, tmp_path, kind, ending):
    """torch -> ours -> torch -> ours: every tensor, and every array, bit for bit."""
    golden = request.getfixturevalue(kind)
    states = {"student": golden.state_dict("student"), "ema": golden.state_dict("teacher")}
    torch.save(training_checkpoint(*states.values(), {}), tmp_path / "x.pt")
    converted(tmp_path / "x.pt", tmp_path / "run")
    for weights, state in states.items():
        path = converted(tmp_path / "run", tmp_path / f"{weights}{ending}", weights=weights)
        if ending == ".pt":
            back = torch.load(path, weights_only=True)["ema"]  # as the SRA authors' generate.py
            back = {name: tensor.numpy() for name, tensor in back.items()}
        else:
            back = load_file(path)
        assert_same_tensors(back, state)
        again = converted(
            path, tmp_path / f"again_{weights}", num_heads=None
        )  # the file tells the heads
        assert_same_tree(loaded(again)[1], loaded(tmp_path / "run", weights)[1])
        assert_same_tree(loaded_head(again), loaded_head(tmp_path / "run", weights))


def test_a_file_is_written_whole_and_never_overwritten(tmp_path, sit, monkeypatch):
    torch.save(tensors(sit.state_dict("student")), tmp_path / "x.pt")
    converted(tmp_path / "x.pt", tmp_path / "run")
    out = tmp_path / "made" / "for" / "out.safetensors"

    def fail(scratch, *rest):
        scratch.write_text("half")
        raise OSError("disk full")

    with monkeypatch.context() as patched, pytest.raises(OSError, match="disk full"):
        patched.setattr("sra_jax.jobs.convert.write_checkpoint", fail)
        converted(tmp_path / "run", out)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run", "x.pt"]
    converted(tmp_path / "run", out)
    assert_same_tensors(load_file(out), sit.state_dict("student"))
    assert [p.name for p in out.parent.iterdir()] == [out.name]
    before = out.read_bytes()
    with pytest.raises(InputError, match=r"out.safetensors is there already; choose another --out"):
        converted(tmp_path / "run", out, weights="student")
    assert out.read_bytes() == before


def test_projectors_are_dropped(tmp_path, sit, caplog):
    student, ema = (with_projectors(sit.state_dict(name)) for name in ("student", "teacher"))
    torch.save(training_checkpoint(student, ema, ARGS["repa"]), tmp_path / "x.pt")
    converted(tmp_path / "x.pt", tmp_path / "run")
    assert "6 tensors of projectors dropped" in caplog.text
    for weights, state in {"ema": ema, "student": student}.items():
        converted(tmp_path / "run", tmp_path / f"{weights}.safetensors", weights=weights)
        expected = {k: v for k, v in state.items() if not k.startswith("projectors")}
        assert_same_tensors(load_file(tmp_path / f"{weights}.safetensors"), expected)


def test_half_precision_is_told_and_widened(tmp_path, sit, caplog):
    state = {k: v.half() for k, v in tensors(sit.state_dict("student")).items()}
    torch.save(state, tmp_path / "x.pt")
    _, params = loaded(converted(tmp_path / "x.pt", tmp_path / "run"))
    assert f"{len(state)} of {len(state)} tensors are float16, and become float32" in caplog.text
    assert_same_tree(
        params, from_torch({k: v.float().numpy() for k, v in state.items()}, sit.config)["trunk"]
    )


def test_what_does_not_fit_is_listed_and_dropped_only_when_asked(tmp_path, sit, caplog):
    state = tensors(sit.state_dict("student"))
    missing = state.pop("blocks.2.mlp.fc2.bias")
    torch.save(state | {"logvar": missing, "extra.bias": missing}, tmp_path / "x.pt")
    with pytest.raises(InputError) as error:
        converted(tmp_path / "x.pt", tmp_path / "run")
    assert "1 missing (blocks.2.mlp.fc2.bias); 2 left over (extra.bias, logvar)" in str(error.value)
    assert "--allow_mismatch" in str(error.value) and not (tmp_path / "run").exists()
    _, params = loaded(converted(tmp_path / "x.pt", tmp_path / "run", allow_mismatch=True))
    assert "dropped extra.bias, logvar; initialised blocks.2.mlp.fc2.bias" in caplog.text
    expected = from_torch(sit.state_dict("student"), sit.config)["trunk"]
    np.testing.assert_array_equal(params["blocks"]["mlp"]["fc2"]["bias"][2], 0)
    expected["blocks"]["mlp"]["fc2"]["bias"][2] = 0
    assert_same_tree(params, expected)


BAD = {
    "no file": ({"source": "none.pt"}, "no file {tmp}/none.pt"),
    "another ending": (
        {"source": "x.ckpt"},
        "neither --source={tmp}/x.ckpt nor --out={tmp}/run ends in",
    ),
    "two files": (
        {"out": "y.pt"},
        "--out={tmp}/y.pt end in .pt, .pth, .safetensors; expected one file",
    ),
    "two directories": ({"source": "", "out": "y.foo"}, "/y.foo ends in .pt, .pth"),
    "a directory": ({"source": "dir.pt"}, "{tmp}/dir.pt is a directory, expected a file"),
    "no run": (
        {"source": "none", "out": "y.pt", "num_heads": None},
        "no workdir {tmp}/none; train first, or check the path",
    ),
    "no workdir": (
        {"source": "x.ckpt", "out": "y.pt", "num_heads": None},
        "/x.ckpt is a file that does not end in .pt, .pth, .safetensors, expected a workdir",
    ),
    "a directory in the way": (
        {"source": "none", "out": "dir.pt", "num_heads": None},
        "cannot write {tmp}/dir.pt: it is a directory; name a file",
    ),
    "half a file, far away": (
        {"source": "half.pt", "out": "made/for/run"},
        "{tmp}/half.pt is not a whole PyTorch file: damaged, cut short or of another kind; fetch",
    ),
    "no run, far away": (
        {"source": "dir.pt/none", "out": "made/for/y.pt", "num_heads": None},
        "no workdir {tmp}/dir.pt/none",
    ),
    "out is there": ({"out": ""}, "{tmp}/ is there already"),
    "heads": ({"num_heads": 0}, "num_heads is 0"),
    "heads that do not divide": ({"num_heads": 5}, "by the 5 heads"),
    "no heads": ({"num_heads": None}, "give --num_heads"),
    "layout": ({"layout": "rpa"}, "did you mean 'repa'"),
    "step": ({"checkpoint": 3}, "--checkpoint is for when a workdir is exported"),
    "weights": ({"weights": "student"}, "--weights is for when a workdir is exported"),
    "for files": (
        {"source": "none", "out": "y.pt", "num_heads": None, "allow_mismatch": True},
        "--allow_mismatch is for when a file is converted",
    ),
}


@pytest.mark.parametrize("changes, part", BAD.values(), ids=BAD)
def test_refuses(tmp_path, sit, changes, part):
    torch.save(tensors(sit.state_dict("student")), tmp_path / "x.pt")
    whole = (tmp_path / "x.pt").read_bytes()
    (tmp_path / "half.pt").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "x.ckpt").write_bytes(whole)
    (tmp_path / "dir.pt").mkdir()
    before = sorted(tmp_path.rglob("*"))
    fields = {"source": "x.pt", "out": "run", "num_heads": 4} | changes
    paths = {name: f"{tmp_path}/{fields.pop(name)}" for name in ("source", "out")}
    with pytest.raises(InputError) as error:
        convert(ConvertRequest(**paths, **fields))
    assert part.format(tmp=tmp_path) in str(error.value)
    assert "\n" not in str(error.value)
    assert sorted(tmp_path.rglob("*")) == before


class Trap:
    """Unpickling it would run a command."""

    def __reduce__(self):
        return os.system, ("touch sprung",)


def test_the_command_refuses_in_one_line(forks, tmp_path):
    torch.save({"conv1.weight": torch.zeros(3)}, tmp_path / "resnet.pt")
    torch.save({"ema": {}, "args": Trap()}, tmp_path / "code.pt")
    save_file({"a": torch.zeros(999)}, tmp_path / "cut.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "cut.safetensors").read_bytes()[:999])
    before = sorted(tmp_path.iterdir())
    for flags, part in (
        ([], "--source is missing"),
        ([f"--source={tmp_path}/resnet.pt", f"--out={tmp_path}/run"], "found conv1.weight"),
        ([f"--source={tmp_path}/code.pt", f"--out={tmp_path}/run"], "holds code (posix.system)"),
        (
            [f"--source={tmp_path}/cut.safetensors", f"--out={tmp_path}/run"],
            "not a whole safetensors",
        ),
        ([f"--source={tmp_path}/resnet.pt", "--out=gs://b/run"], "expected a local path"),
    ):
        result = forks.run("convert", flags)
        assert result.code == 2, result
        (line,) = result.err.splitlines()
        assert line.startswith("error: ") and part in line, line
    assert sorted(tmp_path.iterdir()) == before and not Path("sprung").exists()


def test_help_shows_examples(forks):
    result = forks.run("convert", ["--help"])
    assert result.code == 0 and "python -m sra_jax convert --source=" in result.out
    for flag in ("source", "out", "num_heads", "weights", "allow_mismatch"):
        assert f"--{flag}: " in result.out or f"--[no]{flag}: " in result.out
