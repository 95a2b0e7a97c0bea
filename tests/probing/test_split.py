"""The train/test split of a probe."""

import dataclasses

import numpy as np
import pytest
from tiny import pixel_spec

from sra_jax.core.errors import InputError
from sra_jax.data.records import open_records, write_latents
from sra_jax.probing.split import open_fitting, train_test_split

SPEC = pixel_spec(2, num_classes=4, dtype="float32")


def write(path, count, **changes):
    """A set whose image i is all i."""
    spec = dataclasses.replace(SPEC, **changes)
    moments = np.zeros((count, *spec.moments_shape), np.float32)
    moments[..., : spec.latent_shape[2]] = np.arange(count)[:, None, None, None]
    write_latents(path, spec, [[(moments, np.arange(count) % spec.num_classes)]])
    return open_records(path)


def test_a_fifth_is_held_out(tmp_path):
    data = write(tmp_path / "data", 50)
    train, test = train_test_split(data, None, num=0, seed=0)
    assert (len(train.numbers), len(test.numbers)) == (40, 10)
    assert sorted([*train.numbers, *test.numbers]) == list(range(50))
    np.testing.assert_array_equal(train.labels, train.numbers % 4)
    again = train_test_split(data, None, num=0, seed=0)
    assert [images.digest for images in again] == [train.digest, test.digest]
    other, _ = train_test_split(data, None, num=0, seed=1)
    assert set(other.numbers) != set(train.numbers)


def test_some_images_of_many(tmp_path):
    train, test = train_test_split(write(tmp_path / "data", 50), None, num=30, seed=0)
    assert (len(train.numbers), len(test.numbers)) == (24, 6)
    assert not set(train.numbers) & set(test.numbers)


def test_a_test_set_of_its_own(tmp_path):
    data, other = write(tmp_path / "data", 50), write(tmp_path / "other", 12)
    train, test = train_test_split(data, other, num=0, seed=0)
    assert (len(train.numbers), len(test.numbers)) == (50, 12)
    assert train.source is data and test.source is other


def test_mirror_images_stay_out(tmp_path):
    """Otherwise the training set could hold the mirror image of a test image."""
    data = write(tmp_path / "data", 60, flips=True)
    train, test = train_test_split(data, None, num=0, seed=0)
    assert sorted([*train.numbers, *test.numbers]) == list(range(0, 60, 2))


@pytest.mark.parametrize(
    ("count", "num", "message"),
    [
        (3, 0, "2 training images of 4 classes"),
        (50, 4, "3 training images of 4 classes"),
        (10, 0, "2 test images of 4 classes"),
    ],
)
def test_fewer_images_than_classes_are_refused(tmp_path, count, num, message):
    with pytest.raises(InputError, match=message) as error:
        train_test_split(write(tmp_path / "data", count), None, num, seed=0)
    assert "--num" in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_classes": 5}, "5 classes, the run's data 4"),
        ({"codec": "sd_vae"}, "codec sd_vae, the run was trained with pixels"),
        ({"latent_shape": (4, 4, 1)}, r"latent_shape \(4, 4, 1\), the run .* \(2, 2, 1\)"),
        ({"scale": 0.5}, "scale 0.5, the run was trained with 1.0"),
    ],
)
def test_data_that_do_not_fit_the_run_are_refused(tmp_path, changes, message):
    write(tmp_path / "data", 20, **changes)
    with pytest.raises(InputError, match=message):
        open_fitting(tmp_path / "data", SPEC)


def test_data_that_are_not_there_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"no directory .*none"):
        open_fitting(tmp_path / "none", SPEC)
