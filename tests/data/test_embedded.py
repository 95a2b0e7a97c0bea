import subprocess
import sys
from functools import partial

import numpy as np
import pytest
from sklearn import datasets

from sra_jax.codecs import codec_from_name
from sra_jax.core.errors import InputError
from sra_jax.data.embedded import EMBEDDED, ensure_embedded, load_digits
from sra_jax.data.images import open_images, open_labelled_images
from sra_jax.data.records import open_records
from sra_jax.data.shapes import draw_shapes


def first_digits(count):
    images, labels = load_digits()
    return images[:count], labels[:count]


# A name, and what makes the first so many images of the set.
SETS = {"embedded:digits": first_digits, "embedded:shapes": partial(draw_shapes, 0)}


def test_every_embedded_set_is_tested():
    assert SETS.keys() == EMBEDDED.keys()


@pytest.mark.parametrize("name", SETS)
def test_images_come_back_from_the_data_set(tmp_path, name):
    path = ensure_embedded(name, tmp_path)
    assert path == str(tmp_path / name.removeprefix("embedded:"))
    source = open_records(path)
    images, labels = SETS[name](500)
    batch = source.read(range(500))
    codec = codec_from_name(source.spec.codec, source.spec.scale, source.spec.shift)
    mean, std = np.split(batch["moments"], 2, axis=-1)
    np.testing.assert_array_equal(codec.decode(mean), images)
    assert not std.any()
    np.testing.assert_array_equal(batch["labels"], labels)
    assert source.spec.latent_shape == images.shape[1:]
    assert sum(source.spec.class_counts) == len(source) == source.spec.num_examples
    assert len(source.spec.class_counts) == EMBEDDED[name].num_classes == labels.max() + 1


@pytest.mark.parametrize("name", SETS)
def test_the_same_images_are_encoded(name):
    images, labels = SETS[name](18)
    picture, label = open_labelled_images(name).read(17)
    assert label == labels[17]
    np.testing.assert_array_equal(np.asarray(picture)[..., : images.shape[3]], images[17])


@pytest.mark.parametrize("name", SETS)
def test_the_same_images_are_measured(name):
    images, _ = SETS[name](8)
    chunk = next(iter(open_images(name).chunks(0, 8)))
    np.testing.assert_array_equal(chunk[..., : images.shape[3]], images)


def test_digits_are_those_of_scikit_learn():
    images, labels = load_digits()
    original = datasets.load_digits()
    assert images.shape == (1797, 8, 8, 1) and images.dtype == np.uint8
    assert labels.shape == (1797,) and labels.dtype == np.int32
    assert images.min() == 0 and images.max() == 255
    np.testing.assert_allclose(images[..., 0], original.images * 255 / 16, atol=0.5)
    np.testing.assert_array_equal(labels, original.target)


def test_ensuring_twice_writes_once(tmp_path):
    ensure_embedded("embedded:digits", tmp_path)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "digits").iterdir()}
    ensure_embedded("embedded:digits", tmp_path)
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "digits").iterdir()}


def test_processes_may_race(tmp_path):
    code = (
        "import sys; from sra_jax.data.embedded import ensure_embedded; "
        "ensure_embedded('embedded:digits', sys.argv[1])"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    racers = [subprocess.Popen(command) for _ in range(3)]
    assert [racer.wait() for racer in racers] == [0, 0, 0]
    assert len(open_records(tmp_path / "digits")) == 1797
    assert [path.name for path in tmp_path.iterdir()] == ["digits"]


def test_damaged_digits_are_told_from_a_foreign_directory(tmp_path):
    ensure_embedded("embedded:digits", tmp_path)
    (tmp_path / "digits/metadata.json").write_text("{")
    with pytest.raises(
        InputError, match=rf"metadata\.json is damaged .*; remove {tmp_path}/digits,"
    ):
        ensure_embedded("embedded:digits", tmp_path)


def test_digits_are_not_written_to_a_bucket(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="mount the bucket"):
        ensure_embedded("embedded:digits", "gs://bucket/run")
    assert list(tmp_path.iterdir()) == []


def test_a_foreign_directory_is_left_alone(tmp_path):
    there = tmp_path / "digits/thesis.tex"
    there.parent.mkdir()
    there.touch()
    with pytest.raises(InputError, match="exists already"):
        ensure_embedded("embedded:digits", tmp_path)
    assert list(there.parent.iterdir()) == [there]
