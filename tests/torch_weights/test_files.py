"""PyTorch files are read without running them, tensor by tensor, and as float32."""

import argparse
import os
import pickle
import resource
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sra_jax.core.errors import InputError, RunError
from sra_jax.torch_weights.files import read_checkpoint, write_checkpoint

STATE = {"a": torch.randn(3, 5), "b.weight": torch.randn(2)}


class Trap:
    """Unpickling it would run a command."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def assert_state(tree, expected=STATE):
    assert set(tree) == set(expected)
    for name, tensor in expected.items():
        array = np.asarray(tree[name])
        assert array.dtype == np.float32 and tree[name].shape == tuple(tensor.shape)
        np.testing.assert_array_equal(array, tensor.float().numpy())


@pytest.mark.parametrize("new", [True, False], ids=["zip", "before 1.6"])
def test_a_training_checkpoint(tmp_path, new):
    path = tmp_path / "x.pt"
    content = {
        "model": STATE,
        "ema": {name: 2 * tensor for name, tensor in STATE.items()},
        "opt": {"state": {}, "param_groups": []},
        "args": argparse.Namespace(model="SiT-XL/2", lr=1e-4, tags=["x", None]),
        "epoch": 3,
        "steps": 400,
    }
    torch.save(content, path, _use_new_zipfile_serialization=new)
    checkpoint = read_checkpoint(path)
    assert_state(checkpoint.trees["model"])
    assert_state(checkpoint.trees["ema"], content["ema"])
    assert checkpoint.args == {"model": "SiT-XL/2", "lr": 1e-4, "tags": ["x", None]}


def test_a_bare_state_dict(tmp_path):
    torch.save(STATE, tmp_path / "x.pth")
    checkpoint = read_checkpoint(tmp_path / "x.pth")
    assert list(checkpoint.trees) == ["model"] and checkpoint.args == {}
    assert_state(checkpoint.trees["model"])


def test_a_tensor_is_read_twice_the_same(tmp_path):
    """Its pages are given back after the first time."""
    state = {"a": torch.randn(300, 1000), "b": torch.randn(100_003)}
    torch.save(state, tmp_path / "x.pt")
    tree = read_checkpoint(tmp_path / "x.pt").trees["model"]
    assert_state(tree, state), assert_state(tree, state)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("ending", [".pt", ".safetensors"])
def test_other_floats_become_float32(tmp_path, dtype, ending):
    state = {name: tensor.to(dtype) for name, tensor in STATE.items()}
    path = tmp_path / f"x{ending}"
    torch.save(state, path) if ending == ".pt" else save_file(state, path)
    tree = read_checkpoint(path).trees["model"]
    assert tree["a"].dtype == str(dtype).removeprefix("torch.")
    assert_state(tree, state)


@pytest.mark.parametrize("ending", [".pt", ".safetensors"])
def test_what_is_written_is_read(tmp_path, ending):
    path = tmp_path / f"x{ending}"
    state = {name: tensor.numpy() for name, tensor in STATE.items()}
    write_checkpoint(path, state, {"model": "SiT", "num_heads": 6, "steps": 12})
    checkpoint = read_checkpoint(path)
    (tree,) = checkpoint.trees.values()
    assert_state(tree)
    assert {name: str(value) for name, value in checkpoint.args.items() if name != "format"} == {
        "model": "SiT",
        "num_heads": "6",
        "steps": "12",
    }
    if ending == ".pt":
        assert torch.load(path, weights_only=True)["steps"] == 12  # read by the authors' scripts


def test_a_safetensors_needs_no_torch(tmp_path, monkeypatch):
    save_file(STATE, tmp_path / "x.safetensors")
    torch.save(STATE, tmp_path / "x.pt")
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    assert_state(read_checkpoint(tmp_path / "x.safetensors").trees["model"])
    with pytest.raises(InputError, match=r"x\.pt needs PyTorch: pip install torch.*safetensors"):
        read_checkpoint(tmp_path / "x.pt")


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("how", ["torch", "torch, before 1.6", "pickle"])
def test_code_in_a_file_is_refused_and_not_run(tmp_path, how, protocol):
    path, trap = tmp_path / "x.pt", tmp_path / "sprung"
    content = {"ema": STATE, "args": Trap(trap)}
    if how == "pickle":
        path.write_bytes(pickle.dumps({"args": Trap(trap)}, protocol))
    else:
        new = how == "torch"
        torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=new)
    with pytest.raises(InputError, match=r"x\.pt") as error:
        read_checkpoint(path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400
    what = {2: "posix.system", 4: "Unsupported operand 149"}[protocol]
    assert f"holds code ({what}), which was not run" in str(error.value)
    assert not trap.exists()
    torch.load(path, weights_only=False) if how != "pickle" else pickle.loads(path.read_bytes())
    assert trap.exists()  # the trap works


@pytest.mark.parametrize("value", [PurePosixPath("/x"), argparse.Action([], "x"), print])
def test_nothing_beside_a_namespace_is_allowed(tmp_path, value):
    torch.save({"ema": STATE, "args": argparse.Namespace(value=value)}, tmp_path / "x.pt")
    with pytest.raises(InputError, match=r"holds code \((pathlib|argparse.Action|print)"):
        read_checkpoint(tmp_path / "x.pt")


@pytest.mark.parametrize("ending", [".pt", ".safetensors", "old.pt"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.98])
def test_a_truncated_file_is_refused(tmp_path, ending, share):
    path = tmp_path / f"x{ending}"
    state = {"a": torch.zeros(20_000)}
    if ending == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=ending == ".pt")
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(InputError, match=r"not a whole .* file: damaged, cut short") as error:
        read_checkpoint(path)
    assert "\n" not in str(error.value)


BAD = {
    "no file": (None, "no file .*x.pt; check the path"),
    "a tensor": (torch.zeros(3), "holds a Tensor, expected a state dict"),
    "nothing": ({}, "holds a dict, expected a state dict"),
    "a list": ([1, 2], "holds a list"),
    "other names": ({"state_dict": STATE, "epoch": 3}, "of which state_dict is a dict"),
    "a number": ({"a": torch.zeros(3), "epoch": 3}, "of which epoch is a int"),
    "numbered": ({3: torch.zeros(3)}, "of which 3 is"),
    "sparse": ({"a": torch.eye(3).to_sparse()}, "expected dense tensors"),
}


@pytest.mark.parametrize("content, message", BAD.values(), ids=BAD)
def test_what_holds_no_weights_is_refused(tmp_path, content, message):
    if content is not None:
        torch.save(content, tmp_path / "x.pt")
    with pytest.raises(InputError, match=message):
        read_checkpoint(tmp_path / "x.pt")


def test_a_file_of_another_kind_is_refused(tmp_path):
    for name, text in {"x.pt": "hello", "y.safetensors": "hello", "z.ckpt": ""}.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(InputError, match=name):
            read_checkpoint(tmp_path / name)


@pytest.mark.parametrize("value, message", [(np.nan, "a is not finite"), (3, "a is int64")])
def test_a_tensor_that_is_no_weight_is_refused(tmp_path, value, message):
    torch.save({"a": torch.tensor([value, value])}, tmp_path / "x.pt")
    tree = read_checkpoint(Path(tmp_path / "x.pt")).trees["model"]
    with pytest.raises(InputError, match=message):
        np.asarray(tree["a"])


@pytest.mark.parametrize("ending", [".pt", ".safetensors"])
def test_a_full_disk_is_told_in_one_line(tmp_path, ending):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(RunError, match=r"cannot write weights to .*; make room") as failure:
            write_checkpoint(tmp_path / f"x{ending}", {"w": np.ones((100, 100), np.float32)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(failure.value)


def test_another_kind_of_file_is_not_called_code(tmp_path):
    path = tmp_path / "x.safetensors"
    write_checkpoint(path, {"w": np.ones((100, 100), np.float32)}, {})
    with pytest.raises(InputError, match="not a whole PyTorch file"):
        read_checkpoint(path.rename(tmp_path / "x.pt"))
