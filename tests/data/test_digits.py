import subprocess
import sys

import numpy as np
import pytest
from sklearn import datasets

from sra_jax.codecs import codec_from_name
from sra_jax.data.digits import ensure_digits, load_digits
from sra_jax.data.latents import open_latents
from sra_jax.errors import InputError


def test_digits_are_those_of_scikit_learn():
    images, labels = load_digits()
    original = datasets.load_digits()
    assert images.shape == (1797, 8, 8, 1) and images.dtype == np.uint8
    assert labels.shape == (1797,) and labels.dtype == np.int32
    assert images.min() == 0 and images.max() == 255
    np.testing.assert_allclose(images[..., 0], original.images * 255 / 16, atol=0.5)
    np.testing.assert_array_equal(labels, original.target)


def test_digits_come_back_from_the_data_set(tmp_path):
    ensure_digits(tmp_path / "digits")
    source = open_latents(tmp_path / "digits")
    images, labels = load_digits()
    batch = source.read(range(len(source)))
    codec = codec_from_name(source.spec.codec, source.spec.scale, source.spec.shift)
    np.testing.assert_array_equal(codec.decode(batch["moments"][..., :1]), images)
    np.testing.assert_array_equal(batch["labels"], labels)
    assert source.spec.latent_shape == (8, 8, 1)
    assert source.spec.class_counts == tuple(np.bincount(labels).tolist())


def test_ensuring_twice_writes_once(tmp_path):
    ensure_digits(tmp_path / "digits")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "digits").iterdir()}
    ensure_digits(tmp_path / "digits")
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "digits").iterdir()}


def test_processes_may_race(tmp_path):
    code = "import sys; from sra_jax.data.digits import ensure_digits; ensure_digits(sys.argv[1])"
    command = [sys.executable, "-c", code, str(tmp_path / "digits")]
    racers = [subprocess.Popen(command) for _ in range(3)]
    assert [racer.wait() for racer in racers] == [0, 0, 0]
    assert len(open_latents(tmp_path / "digits")) == 1797
    assert [path.name for path in tmp_path.iterdir()] == ["digits"]


def test_damaged_digits_are_told_from_a_foreign_directory(tmp_path):
    ensure_digits(tmp_path / "digits")
    (tmp_path / "digits/metadata.json").write_text("{")
    with pytest.raises(
        InputError, match=rf"metadata\.json is damaged .*; remove {tmp_path}/digits,"
    ):
        ensure_digits(tmp_path / "digits")


def test_digits_are_not_written_to_a_bucket(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="mount the bucket"):
        ensure_digits("gs://bucket/digits")
    assert list(tmp_path.iterdir()) == []


def test_a_foreign_directory_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(InputError, match="exists already"):
        ensure_digits(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
