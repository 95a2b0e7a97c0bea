"""The FID-Inception against torch-fidelity's numbers, and the reading of its weights."""

import json
import sys
import types
import zlib

import jax
import numpy as np
import pytest
from commands import run
from golden import DATA, relative_error
from safetensors.numpy import save_file

from sra_jax.core.errors import InputError
from sra_jax.evaluation.inception import Inception, resize
from sra_jax.evaluation.inception_weights import load_inception, params_from_torch
from sra_jax.evaluation.scores import inception_score

PARITY = 1e-5  # the contract is 1e-4


@pytest.fixture(scope="module")
def golden():
    with np.load(DATA / "inception.npz", allow_pickle=False) as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def tensors(golden):
    """The port's tensors, by the rule in the golden numbers' README."""
    names, shapes = golden["keys"].tolist(), golden["shapes"].tolist()
    return {
        name: draw_tensor(name, tuple(map(int, shape.split(","))))
        for name, shape in zip(names, shapes, strict=True)
        if shape  # the counters are scalars
    }


def draw_tensor(name, shape):
    a = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)
    if name.endswith("running_var"):
        return 1 + 0.2 * abs(a)
    if name.endswith(("running_mean", ".bias")):
        return 0.1 * a
    if name.endswith("bn.weight"):
        return 1 + 0.1 * a
    return a * np.float32(np.sqrt(2 / np.prod(shape[1:])))


@pytest.mark.parametrize("size", ["a", "b"])
def test_agrees_with_torch_fidelity(golden, tensors, size):
    params = params_from_torch(tensors)
    features = jax.jit(Inception().apply)({"params": params}, golden[f"{size}/images"])
    for name, array in features._asdict().items():
        expected = golden[f"{size}/{name}"]
        assert array.dtype == np.float32 and array.shape == expected.shape
        assert relative_error(array, expected) < PARITY, name


def resize_pixel_by_pixel(image, size):
    """TensorFlow 1's rule, one output pixel at a time, in float64."""
    height, width, channels = image.shape
    out = np.zeros((size, size, channels))
    for i, j in np.ndindex(size, size):
        y, x = i * height / size, j * width / size
        top, left = int(y), int(x)
        bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
        upper = image[top, left] * (left + 1 - x) + image[top, right] * (x - left)
        lower = image[bottom, left] * (left + 1 - x) + image[bottom, right] * (x - left)
        out[i, j] = upper * (top + 1 - y) + lower * (y - top)
    return out


@pytest.mark.parametrize("shape", [(5, 9, 3), (40, 23, 1), (17, 17, 3)])
def test_resize_is_that_of_tensorflow_1(shape):
    image = np.random.default_rng(0).uniform(0, 255, shape)
    expected = resize_pixel_by_pixel(image, 17)
    resized = resize(image[None].astype(np.float32), 17)[0]
    np.testing.assert_allclose(resized, expected, atol=1e-3)


def test_reads_safetensors_and_pth(monkeypatch, tmp_path, golden, tensors):
    expected = params_from_torch(tensors)
    counters = {k: np.zeros((), np.int64) for k in golden["keys"].tolist() if k not in tensors}
    save_file(tensors | counters, tmp_path / "inception.safetensors")
    read = load_inception(tmp_path / "inception.safetensors")
    jax.tree.map(np.testing.assert_array_equal, read, expected)

    class Tensor(types.SimpleNamespace):
        def numpy(self):
            return self.array

    def load(path, map_location, weights_only):
        assert weights_only and map_location == "cpu" and path.name == "inception.pth"
        return {name: Tensor(array=array) for name, array in tensors.items()}

    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(load=load))
    (tmp_path / "inception.pth").touch()
    jax.tree.map(
        np.testing.assert_array_equal, load_inception(tmp_path / "inception.pth"), expected
    )


def test_a_missing_torch_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "inception.pth").touch()
    with pytest.raises(InputError, match=r"needs torch: pip install torch, or .*safetensors"):
        load_inception(tmp_path / "inception.pth")


def test_other_files_are_refused(monkeypatch, tmp_path):
    def load(path, **options):
        raise RuntimeError("not a zip\nand much more")

    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(load=load))
    for name in ("bad.pth", "bad.safetensors", "bad.pb"):
        (tmp_path / name).write_text("not weights")
    for name, message in {
        "none.pth": r"no file .*none.pth, expected Inception's .*: fetch https://.*6726825d.pth",
        "": f"{tmp_path} is a directory, expected Inception's weights: fetch https://",
        "bad.pth": r"bad.pth is not a whole PyTorch file of weights: fetch https://",
        "bad.safetensors": "bad.safetensors is damaged",
        "bad.pb": r"must end in .pth or .safetensors: fetch https://",
    }.items():
        with pytest.raises(InputError, match=message) as refusal:
            load_inception(tmp_path / name)
        assert "\n" not in str(refusal.value)


def test_other_models_are_refused(tensors):
    first, last = "Conv2d_1a_3x3.conv.weight", "fc.weight"
    changes = {
        r"1 missing \(fc.weight\)": {k: v for k, v in tensors.items() if k != last},
        r"1 left over \(AuxLogits.fc.weight\)": tensors | {"AuxLogits.fc.weight": tensors[last]},
        r"fc.weight has shape \(1000, 2048\), expected \(1008, 2048\)": (
            tensors | {last: tensors[last][:1000]}
        ),
        rf"{first} has shape \(3, 3, 3, 32\), expected \(32, 3, 3, 3\)": (
            tensors | {first: tensors[first].T}
        ),
    }
    for message, wrong in changes.items():
        with pytest.raises(InputError, match=message):
            params_from_torch(wrong)


@pytest.mark.slow
def test_the_command_measures_with_inception(tmp_path, golden, tensors):
    """From the port's tensors and a file of images, to the distances between golden features and
    a few random ones, by a formula that needs no covariance."""
    save_file(tensors, tmp_path / "inception.safetensors")
    np.savez(tmp_path / "samples.npz", arr_0=golden["a/images"])
    rng = np.random.default_rng(0)
    reference, expected = {}, {}
    for metric, end, features in (("fid", "", "a/pool"), ("sfid", "_s", "a/spatial")):
        ours = golden[features].reshape(3, -1).astype(np.float64)
        real = rng.normal(size=(5, ours.shape[1]))
        reference |= {f"mu{end}": real.mean(axis=0), f"sigma{end}": np.cov(real, rowvar=False)}
        x, y = ((a - a.mean(axis=0)) / np.sqrt(len(a) - 1) for a in (ours, real))
        shift = ours.mean(axis=0) - real.mean(axis=0)
        root = np.linalg.svd(x @ y.T, compute_uv=False).sum()
        expected[metric] = shift @ shift + np.sum(x**2) + np.sum(y**2) - 2 * root
    expected["inception_score"] = inception_score(golden["a/logits_unbiased"])
    np.savez(tmp_path / "reference.npz", **reference)
    files = {"samples": "samples.npz", "reference": "reference.npz"}
    flags = [f"--{flag}={tmp_path / name}" for flag, name in files.items()]
    flags += [f"--inception={tmp_path}/inception.safetensors", "--metrics=fid,sfid,is"]
    result = run("evaluate", flags)
    assert (result.code, result.err) == (0, "")
    assert "FID of" in result.out and "biased upward: 3 images" in result.out
    numbers = json.loads(result.out.splitlines()[-1])
    assert {name: numbers[name] for name in expected} == pytest.approx(expected, rel=1e-5)
