"""Cached features are found again; damaged or incomplete ones are not used."""

import json
import os
import shutil

import numpy as np
import pytest

from sra_jax.core.errors import InputError, RunError
from sra_jax.probing.cache import FeatureCache
from sra_jax.probing.features import Pooled

SHAPE = COUNT, WIDTH = 10, 6
IDENTITY = {"weights": "abc", "seed": 0}
BLOCKS = (1, 3)


@pytest.fixture
def features():
    return np.random.default_rng(0).normal(size=(2, *SHAPE)).astype(np.float32)


def batches(features):
    """Four images at a time."""
    for start in range(0, COUNT, 4):
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
    (file,) = cache.directory.glob(f"block{block:02d}-t0.3.npz")
    return file


def test_what_is_stored_is_found_again(filled, features):
    assert filled.missing((1, 2, 3), 0.3) == (2,)
    assert filled.missing((1, 3), 0.30000001) == (1, 3)
    for i, block in enumerate(BLOCKS):
        np.testing.assert_array_equal(filled.load(block, 0.3), features[i])
        with np.load(file_of(filled, block)) as arrays:  # as anybody reads them
            np.testing.assert_array_equal(arrays["features"], features[i])
        expected = np.abs(features[i].astype(np.float64)).sum(axis=-1).mean()
        assert filled.norm(block, 0.3) == pytest.approx(expected, rel=1e-6)


def test_other_weights_or_images_have_a_cache_of_their_own(filled, tmp_path):
    for identity in (IDENTITY | {"seed": 1}, IDENTITY | {"weights": "abd"}):
        assert open_cache(tmp_path, identity).missing(BLOCKS, 0.3) == BLOCKS
    assert open_cache(tmp_path, shape=(COUNT + 1, WIDTH)).missing(BLOCKS, 0.3) == BLOCKS
    assert filled.missing(BLOCKS, 0.3) == ()


def flip(file, features):
    """Flips a bit of the last image's features."""
    data, last = file.read_bytes(), features[1, -1].tobytes()
    assert data.count(last) == 1
    file.write_bytes(data.replace(last, bytes([last[0] ^ 1]) + last[1:]))


def save(file, **arrays):
    np.savez(file, **{"features": np.zeros(SHAPE, np.float32), "norm": 1.0} | arrays)


HARM = {
    "one bit": flip,
    "cut short": lambda file, _: os.truncate(file, file.stat().st_size - 1),
    "empty": lambda file, _: os.truncate(file, 0),
    "no array": lambda file, _: file.write_text("hello"),
    "other format": lambda file, _: file.write_bytes(b"\x93NUMPY\x01\x00"),
    "other arrays": lambda file, _: np.savez(file, np.zeros(SHAPE, np.float32)),
    "other shape": lambda file, _: save(file, features=np.zeros((3, WIDTH), np.float32)),
    "other type": lambda file, _: save(file, features=np.zeros(SHAPE)),
    "pickle": lambda file, _: save(file, features=np.array([{}])),
}


@pytest.mark.parametrize("harm", HARM.values(), ids=HARM)
def test_damaged_features_are_missing_and_can_be_written_again(
    filled, tmp_path, features, caplog, harm
):
    harm(file_of(filled, 3), features)
    cache = open_cache(tmp_path)
    assert cache.missing(BLOCKS, 0.3) == (3,)
    assert "block03-t0.3.npz are damaged" in caplog.text
    cache.store((3,), 0.3, batches(features[1:]))
    assert open_cache(tmp_path).missing(BLOCKS, 0.3) == ()
    np.testing.assert_array_equal(cache.load(3, 0.3), features[1])


def test_a_flipped_bit_is_noticed_unless_it_changes_nothing(filled, features):
    """Some bits of a zip file mean nothing here, such as the date."""
    file, norm, noticed = file_of(filled, 3), filled.norm(3, 0.3), 0
    whole = file.read_bytes()
    for place, byte in enumerate(whole):
        file.write_bytes(whole[:place] + bytes([byte ^ 1 << place % 8]) + whole[place + 1 :])
        if filled.missing((3,), 0.3):
            noticed += 1
        else:
            np.testing.assert_array_equal(filled.load(3, 0.3), features[1])
            assert filled.norm(3, 0.3) == norm
    assert noticed > len(whole) / 2


def test_a_removed_file_is_missing(filled, tmp_path, caplog):
    file_of(filled, 3).unlink()
    assert open_cache(tmp_path).missing(BLOCKS, 0.3) == (3,)
    assert "damaged" not in caplog.text


def test_an_interrupted_pass_leaves_nothing_that_counts(filled, tmp_path, features):
    def interrupted():
        yield next(batches(features))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        filled.store(BLOCKS, 0.5, interrupted())
    cache = open_cache(tmp_path)
    assert cache.missing(BLOCKS, 0.5) == BLOCKS and cache.missing(BLOCKS, 0.3) == ()
    assert {path.suffix for path in cache.directory.iterdir()} == {".npz", ".json"}


def test_what_a_killed_process_has_left_is_removed(filled, tmp_path):
    """`replacing` names its scratch file like this."""
    scratch = filled.directory / ".block01-t0.5.0a1b2c3d.tmp.npz"
    scratch.write_bytes(b"half")
    assert open_cache(tmp_path).missing(BLOCKS, 0.3) == () and not scratch.exists()


def test_too_little_room_is_told_before_anything_is_done(filled, monkeypatch, features):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 1, 99))
    with pytest.raises(InputError, match=r"take 0.0 GB.*fewer --blocks"):
        filled.store(BLOCKS, 0.5, None)


def test_a_disk_that_fails_is_told_in_one_line(tmp_path, features):
    cache = open_cache(tmp_path)
    shutil.rmtree(cache.directory)
    cache.directory.mkdir()
    (cache.directory / "block01-t0.3.npz").mkdir()  # in the way
    with pytest.raises(RunError, match=r"cannot write .*directory; what was .* kept: .*--out"):
        cache.store(BLOCKS, 0.3, batches(features))


def test_the_identity_is_there_to_be_read(filled):
    assert json.loads((filled.directory / "identity.json").read_text()) == IDENTITY
