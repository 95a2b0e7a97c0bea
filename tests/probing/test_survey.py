"""Filling the caches of features."""

import numpy as np
import pytest

from sra_jax.core.errors import RunError
from sra_jax.probing import survey
from sra_jax.probing.cache import FeatureCache
from sra_jax.probing.features import Pooled, Selection
from sra_jax.probing.survey import Split, fill

BLOCKS, SHAPE = (1, 2, 3), (10, 6)


@pytest.fixture
def split(tmp_path):
    numbers = np.arange(SHAPE[0], dtype=np.int32)
    cache = FeatureCache(tmp_path, "cache", {}, SHAPE)
    return Split(Selection(None, numbers, numbers % 2, "digest"), cache)


@pytest.fixture
def passes(monkeypatch):
    """Blocks and times of the passes through a model whose features are the block's number."""
    passes = []

    def extract(extractor, params, images, blocks, time, mesh):
        passes.append((blocks, time))
        for rows in np.split(images.numbers, [4, 8]):
            features = np.ones((1, len(rows), SHAPE[1])) * np.reshape(blocks, (-1, 1, 1))
            yield Pooled(np.float32(features), np.full((len(blocks), len(rows)), np.float32(time)))

    monkeypatch.setattr(survey, "extract", extract)
    return passes


def test_one_pass_computes_all_blocks_that_are_missing(split, passes):
    fill([split], None, None, (2,), (0.1,), None)
    fill([split], None, None, BLOCKS, (0.1, 0.5), None)
    fill([split], None, None, BLOCKS, (0.1, 0.5), None)
    assert passes == [((2,), 0.1), ((1, 3), 0.1), (BLOCKS, 0.5)]
    for block in BLOCKS:
        np.testing.assert_array_equal(split.cache.load(block, 0.5), np.full(SHAPE, block))
        assert split.cache.norm(block, 0.5) == 0.5


def test_features_that_the_host_cannot_hold_take_several_passes(split, passes, monkeypatch):
    monkeypatch.setattr(survey, "HOST_BYTES", 2 * 4 * 10 * 6)
    fill([split], None, None, BLOCKS, (0.5,), None)
    assert passes == [((1, 2), 0.5), ((3,), 0.5)]
    assert split.cache.missing(BLOCKS, 0.5) == ()


def test_features_that_are_not_finite_are_not_stored(split, passes):
    with pytest.raises(RunError, match="not finite"):
        fill([split], None, None, BLOCKS, (np.inf,), None)
    assert split.cache.missing(BLOCKS, np.inf) == BLOCKS
