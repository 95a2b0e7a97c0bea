import json

import numpy as np
import pytest

from sra_jax.core.errors import InputError
from sra_jax.data.npy_import import NpyLatents

NAMES = [f"{i // 4:05d}/img-mean-std-{i:08d}.npy" for i in range(10)]
LABELS = [3, 0, 1, 3, 2, 2, 0, 1, 1, 3]


@pytest.fixture
def folder(tmp_path):
    """Ten files in three directories, as EDM2's dataset_tool.py lays them out."""
    rng = np.random.default_rng(0)
    for name in NAMES:
        path = tmp_path / "vae-sd" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        mean, std = 5 * rng.standard_normal((4, 8, 8)), 10.0 ** rng.uniform(-7, 0, (4, 8, 8))
        np.save(path, np.concatenate([mean, std]).astype(np.float32))
    pairs = list(map(list, zip(NAMES, LABELS, strict=True)))
    (tmp_path / "vae-sd/dataset.json").write_text(json.dumps({"labels": pairs[::-1]}))
    return tmp_path / "vae-sd"


def read_all(folder, skip_bad=False):
    """Everything that a folder gives: moments, labels and what was skipped."""
    latents, skipped = NpyLatents(folder, "float16", skip_bad), []
    moments, labels = zip(*latents.batches(range(len(latents)), skipped), strict=True)
    return np.concatenate(moments), np.concatenate(labels), skipped


def test_values_come_unchanged_channels_last(folder):
    moments, labels, skipped = read_all(folder)
    expected = np.stack([np.load(folder / name).transpose(1, 2, 0) for name in NAMES])
    np.testing.assert_array_equal(moments, expected)
    assert labels.tolist() == LABELS and skipped == []


def test_the_spec_is_that_of_sd_vae(folder):
    spec = NpyLatents(folder, "float32", False).spec
    assert (spec.codec, spec.scale, spec.shift) == ("sd_vae", 0.18215, 0.0)
    assert (spec.latent_shape, spec.resolution, spec.num_classes) == ((8, 8, 4), 64, 4)
    assert spec.dtype == "float32" and spec.source == f"npy:{folder}"


def test_a_range_of_files_is_read_alone(folder):
    latents = NpyLatents(folder, "float16", False)
    ((moments, labels),) = latents.batches(range(3, 6), [])
    assert len(moments) == 3 and labels.tolist() == LABELS[3:6]


def test_no_labels_is_one_class(folder):
    (folder / "dataset.json").write_text('{"labels": null}')
    assert NpyLatents(folder, "float16", False).spec.num_classes == 1
    assert read_all(folder)[1].tolist() == [0] * 10


def relabel(folder, change):
    labels = dict(zip(NAMES, LABELS, strict=True))
    change(labels)
    (folder / "dataset.json").write_text(json.dumps({"labels": list(labels.items())}))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "dataset.json").unlink(), "cannot read .*dataset.json .*; name the folder"),
        (lambda f: (f / "dataset.json").write_text("{"), "cannot read .*dataset.json"),
        (lambda f: (f / "dataset.json").write_text("{}"), "cannot read .*KeyError"),
        (lambda f: (f / "dataset.json").write_text('{"labels": [3]}'), "cannot read .*TypeError"),
        (lambda f: (f / NAMES[4]).unlink(), f"other files .*: {NAMES[4]}, and 1 in all"),
        (
            lambda f: relabel(f, lambda x: x.pop(NAMES[2])),
            f"other files .*: {NAMES[2]}, and 1",
        ),
        (lambda f: relabel(f, lambda x: x.update({NAMES[2]: -1})), "label -1 of"),
        (lambda f: relabel(f, lambda x: x.update({NAMES[2]: "cat"})), "label 'cat' of"),
        (lambda f: relabel(f, lambda x: x.update({NAMES[2]: 2**40})), f"label {2**40} of"),
        (
            lambda f: relabel(f, lambda x: x.update({NAMES[2]: 2 * 10**9})),
            "below 1000000",
        ),
        (
            lambda f: np.save(f / NAMES[0], np.zeros((8, 8, 9))),
            r"shape \(8, 8, 9\), expected square",
        ),
        (
            lambda f: np.save(f / NAMES[0], np.zeros((7, 8, 8))),
            r"shape \(7, 8, 8\), expected square",
        ),
    ],
)
def test_folders_that_are_not_as_expected_are_refused(folder, spoil, message):
    spoil(folder)
    with pytest.raises(InputError, match=message) as caught:
        NpyLatents(folder, "float16", False)
    assert "\n" not in str(caught.value)


def test_a_folder_without_latents_is_refused(tmp_path):
    (tmp_path / "dataset.json").write_text('{"labels": []}')
    with pytest.raises(InputError, match=r"none of the 0 \.npy files"):
        NpyLatents(tmp_path, "float16", False)


def test_mixed_resolutions_are_refused_even_if_bad_files_are_skipped(folder):
    np.save(folder / NAMES[7], np.zeros((8, 16, 16), np.float32))
    with pytest.raises(InputError, match=rf"{NAMES[7]} has shape \(8, 16, 16\)"):
        read_all(folder, skip_bad=True)


BAD = {
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:500]),
    "empty": lambda path: path.write_bytes(b""),
    "pickled": lambda path: np.save(path, np.array([{}])),
    "integers": lambda path: np.save(path, np.zeros((8, 8, 8), np.int32)),
    "not finite": lambda path: np.save(path, np.full((8, 8, 8), np.nan, np.float32)),
}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("index", [0, 6])
def test_a_bad_file_is_named_or_skipped(folder, kind, index):
    BAD[kind](folder / NAMES[index])
    with pytest.raises(InputError, match=f"cannot use {folder / NAMES[index]} .*--skip_bad"):
        read_all(folder)
    moments, labels, skipped = read_all(folder, skip_bad=True)
    assert len(moments) == 9 and labels.tolist() == LABELS[:index] + LABELS[index + 1 :]
    assert len(skipped) == 1 and skipped[0].startswith(f"{folder / NAMES[index]} (")
