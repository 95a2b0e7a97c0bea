"""Features on disk: found again, never believed when damaged, whole or not at all."""

import json
import os
import shutil

import numpy as np
import pytest

from sra_jax.core.errors import InputError, RunError
from sra_jax.probing.cache import FeatureCache, Shape
from sra_jax.probing.features import Pooled

SHAPE = Shape(count=10, width=6)
IDENTITY = {"weights": "abc", "seed": 0}
BLOCKS = (1, 3)


@pytest.fixture
def features():
    return np.random.default_rng(0).normal(size=(2, *SHAPE)).astype(np.float32)


def batches(features):
    """Four images at a time."""
    for start in range(0, SHAPE.count, 4):
        part = features[:, start : start + 4]
        yield Pooled(part, np.abs(part).sum(axis=-1))


def open_cache(root, identity=IDENTITY, shape=SHAPE):
    return FeatureCache(root, "step5-ema-test", identity, shape)


@pytest.fixture
def filled(tmp_path, features):
    """A cache of blocks 1 and 3 at t = 0.3."""
    open_cache(tmp_path).store(BLOCKS, 0.3, batches(features))
    return open_cache(tmp_path)


def file_of(cache, block):
    (file,) = cache.directory.glob(f"block{block:02d}-t0.3.npy")
    return file


def test_what_is_stored_is_found_again(filled, features):
    assert filled.missing((1, 2, 3), 0.3) == (2,)
    assert filled.missing((1, 3), 0.30000001) == (1, 3)
    for i, block in enumerate(BLOCKS):
        np.testing.assert_array_equal(filled.load(block, 0.3), features[i])
        np.testing.assert_array_equal(np.load(file_of(filled, block)), features[i])
        expected = np.abs(features[i].astype(np.float64)).sum(axis=-1).mean()
        assert filled.norm(block, 0.3) == pytest.approx(expected, rel=1e-6)


def test_other_weights_or_images_have_a_cache_of_their_own(filled, tmp_path):
    for identity in (IDENTITY | {"seed": 1}, IDENTITY | {"weights": "abd"}):
        assert open_cache(tmp_path, identity).missing(BLOCKS, 0.3) == BLOCKS
    assert filled.missing(BLOCKS, 0.3) == ()


def flip(file):
    data = bytearray(file.read_bytes())
    data[-9] ^= 1
    file.write_bytes(data)


HARM = {
    "one bit": flip,
    "cut short": lambda file: os.truncate(file, file.stat().st_size - 1),
    "empty": lambda file: os.truncate(file, 0),
    "gone": lambda file: file.unlink(),
    "no array": lambda file: file.write_text("hello"),
    "other shape": lambda file: np.save(file, np.zeros((3, 6), np.float32)),
    "pickle": lambda file: np.save(file, np.array([{}]), allow_pickle=True),
}


@pytest.mark.parametrize("harm", HARM.values(), ids=HARM)
def test_damaged_features_are_missing_and_can_be_written_again(
    filled, tmp_path, features, caplog, harm
):
    harm(file_of(filled, 3))
    cache = open_cache(tmp_path)
    assert cache.missing(BLOCKS, 0.3) == (3,)
    assert "block03-t0.3.npy are damaged, and computed again" in caplog.text
    cache.store((3,), 0.3, batches(features[1:]))
    assert open_cache(tmp_path).missing(BLOCKS, 0.3) == ()
    np.testing.assert_array_equal(cache.load(3, 0.3), features[1])


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"block01-t0.3.npy": 5}', "\0"])
def test_a_damaged_index_is_not_believed(filled, tmp_path, text):
    (filled.directory / "index.json").write_text(text)
    assert open_cache(tmp_path).missing(BLOCKS, 0.3) == BLOCKS


def test_an_interrupted_pass_leaves_nothing_that_counts(filled, tmp_path, features):
    def interrupted():
        yield next(batches(features))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        filled.store(BLOCKS, 0.5, interrupted())
    cache = open_cache(tmp_path)
    assert cache.missing(BLOCKS, 0.5) == BLOCKS and cache.missing(BLOCKS, 0.3) == ()
    assert {path.suffix for path in cache.directory.iterdir()} == {".npy", ".json"}


def test_too_little_room_is_told_before_anything_is_done(filled, monkeypatch, features):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 1, 99))
    with pytest.raises(InputError, match=r"take 0.0 GB.*fewer --blocks"):
        filled.store(BLOCKS, 0.5, None)


def test_a_disk_that_fails_is_told_in_one_line(tmp_path, features):
    cache = open_cache(tmp_path)
    shutil.rmtree(cache.directory)
    cache.directory.mkdir()
    (cache.directory / "block01-t0.3.npy").mkdir()  # in the way
    with pytest.raises(RunError, match=r"cannot write .*directory; what was .* kept: .*--out"):
        cache.store(BLOCKS, 0.3, batches(features))


def test_the_identity_is_there_to_be_read(filled):
    assert json.loads((filled.directory / "identity.json").read_text()) == IDENTITY
