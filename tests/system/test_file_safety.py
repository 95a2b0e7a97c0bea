"""No file of a user's runs code or writes where it should not; odd paths work like others."""

import ast
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import Forks, digits

from sra_jax.core.errors import InputError
from sra_jax.data.images import open_images, open_labelled_images
from sra_jax.data.npy_import import NpyLatents
from sra_jax.evaluation.inception_weights import load_inception
from sra_jax.evaluation.reference import open_reference

PACKAGE = Path(__file__).parents[2] / "sra_jax"
# What unpickles, or unpacks an archive's members to the names that they give themselves.
FORBIDDEN_MODULES = {
    "pickle",
    "cPickle",
    "dill",
    "cloudpickle",
    "joblib",
    "shelve",
    "marshal",
    "tarfile",
}
HARMLESS_NAMES = {"UnpicklingError"}  # an error is what torch raises, and reads nothing
FORBIDDEN_CALLS = {"extract", "extractall", "unpack_archive", "read_pickle"}
REQUIRED = {"np.load": ("allow_pickle", False), "torch.load": ("weights_only", True)}


def find_dangers(source: str) -> list[str]:
    """What in a module reads pickles or unpacks archives."""
    dangers = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names]
            if not set(names) <= HARMLESS_NAMES:
                names.append(getattr(node, "module", None) or "")
            dangers += [name for name in names if name.split(".")[0] in FORBIDDEN_MODULES]
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if isinstance(node.func, ast.Attribute) and node.func.attr in FORBIDDEN_CALLS:
                dangers.append(name)
            if name.replace("numpy.", "np.") in REQUIRED:
                keyword, safe = REQUIRED[name.replace("numpy.", "np.")]
                given = {k.arg: k.value for k in node.keywords}.get(keyword)
                if not isinstance(given, ast.Constant) or given.value is not safe:
                    dangers.append(f"{name} without {keyword}={safe}")
    return dangers


def test_no_module_reads_pickles_or_unpacks_archives():
    found = {str(path): find_dangers(path.read_text()) for path in PACKAGE.rglob("*.py")}
    assert len(found) > 50 and not any(found.values()), found


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "np.load(path)",
        "numpy.load(path, allow_pickle=True)",
        "torch.load(path, weights_only=False)",
        "zipfile.ZipFile(path).extractall(folder)",
    ],
)
def test_the_checker_finds_dangers(source):
    assert len(find_dangers(source)) == 1
    assert find_dangers("np.load(p, allow_pickle=False); torch.load(p, weights_only=True)") == []


class Trap:
    """Makes a directory when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_pickle_in_a_file_is_refused_and_not_run(tmp_path):
    sprung, trap = tmp_path / "sprung", np.empty(2, object)
    trap[:] = [Trap(sprung)] * 2
    images = np.zeros((2, 8, 8, 3), np.uint8)
    for number, arrays in enumerate(
        [
            {"arr_0": trap},
            {"images": trap},
            {"images": images, "labels": trap},
            {"mu": trap, "sigma": trap},
            {"arr_0": images, "mu": trap, "sigma": trap},
        ]
    ):
        path = tmp_path / f"{number}.npz"
        np.savez(path, **arrays)
        refused = 0
        for read in (open_labelled_images, open_images, lambda name: open_reference(name, ["fid"])):
            try:
                read(str(path))
            except InputError:
                refused += 1
        assert refused
    folder = tmp_path / "vae-sd" / "00000"
    folder.mkdir(parents=True)
    np.save(folder / "img-mean-std-00000000.npy", trap)
    (folder.parent / "dataset.json").write_text(
        '{"labels": [["00000/img-mean-std-00000000.npy", 0]]}'
    )
    with pytest.raises(InputError):
        for _ in NpyLatents(folder.parent, "float16", False).batches(range(1), []):
            pass
    torch.save({"state": Trap(sprung)}, tmp_path / "inception.pth")
    with pytest.raises(InputError):
        load_inception(tmp_path / "inception.pth")
    assert not sprung.exists()
    np.load(tmp_path / "0.npz", allow_pickle=True)["arr_0"]  # the trap is one
    assert sprung.exists()


def test_members_that_name_other_places_write_nothing(tmp_path):
    path = tmp_path / "inside" / "file.npz"
    path.parent.mkdir()
    np.savez(path, arr_0=np.zeros((2, 8, 8, 3), np.uint8))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("../escaped.npy", b"x")
        archive.writestr(f"{tmp_path}/absolute.npy", b"x")
    assert open_labelled_images(str(path)).count == 2 and open_images(str(path)).count == 2
    open_reference(str(path), ["fid"])
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["file.npz", "inside"]


def test_paths_with_spaces_and_unicode_and_links_work(tmp_path):
    folder = tmp_path / "ein Ordner" / "数据 é'\"$x"
    folder.mkdir(parents=True)
    (tmp_path / "disk").mkdir()
    workdir, images = folder / "run", folder / "images.npz"
    workdir.symlink_to(tmp_path / "disk", target_is_directory=True)
    rng = np.random.default_rng(0)
    np.savez(images, arr_0=rng.integers(0, 256, (32, 8, 8, 3), np.uint8), labels=np.arange(32) % 10)
    sizes = {"data__latent_shape": "(8, 8, 3)", "data__path": folder / "set"}
    encoding = [f"--source={images}", f"--out={folder / 'set'}", "--codec=pixels", "--resolution=8"]
    sampling = [f"--workdir={workdir}", f"--out={folder / 'out.npz'}", "--num=4", "--solver=euler"]
    with Forks() as forks:
        for name, flags in (
            ("encode", encoding),
            ("train", digits(workdir, **sizes, train__steps=2)),
            ("train", digits(workdir, **sizes, train__steps=3)),
            ("sample", [*sampling, "--solver_steps=2", f"--grid={folder / 'grid é.png'}"]),
            ("evaluate", [f"--samples={folder / 'out.npz'}", f"--reference={images}"]),
        ):
            result = forks.run(name, flags)
            assert (result.code, result.err) == (0, ""), result
    assert (tmp_path / "disk" / "checkpoints" / "3").is_dir() and workdir.is_symlink()
    assert np.load(folder / "out.npz")["arr_0"].shape == (4, 8, 8, 3)
    assert (folder / "grid é.png").stat().st_size > 0
