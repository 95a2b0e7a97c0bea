"""From latents to tokens and back, of every shape; tests/models/test_initialisation.py has the
position tables."""

import jax.numpy as jnp
import numpy as np
import pytest

from sra_jax.core.errors import InputError
from sra_jax.models import LatentLayout

LAYOUTS = [
    (LatentLayout(8, 8, 4, patch=2), (4, 4), 4),
    (LatentLayout(32, 32, 4, patch=8), (4, 4), 64),
    (LatentLayout(6, 12, 3, patch=3), (2, 4), 9),
    (LatentLayout(12, 2, 1, patch=2), (6, 1), 4),
    (LatentLayout(1, 4, 2, patch=1), (1, 4), 1),
    (LatentLayout(4, 4, 1, patch=4), (1, 1), 16),
    # Width 1 is a sequence.
    (LatentLayout(128, 1, 32, patch=1), (128, 1), 1),
    (LatentLayout(12, 1, 5, patch=4), (3, 1), 4),
]


def plain_patchify(x, layout):
    """Every value is looked up by its place in the latent."""
    rows, columns = layout.grid
    high, wide = layout.height // rows, layout.width // columns
    channels = x.shape[-1]
    tokens = np.zeros((len(x), rows * columns, high * wide * channels), x.dtype)
    for row in range(rows):
        for column in range(columns):
            for i in range(high):
                for j in range(wide):
                    for c in range(channels):
                        place = (i * wide + j) * channels + c
                        value = x[:, row * high + i, column * wide + j, c]
                        tokens[:, row * columns + column, place] = value
    return tokens


@pytest.mark.parametrize(("layout", "grid", "values"), LAYOUTS, ids=str)
def test_sizes(layout, grid, values):
    assert layout.shape == (layout.height, layout.width, layout.channels)
    assert layout.grid == grid and layout.tokens == grid[0] * grid[1]
    assert layout.patch_values == values
    assert layout.tokens * values == layout.height * layout.width


@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize(("layout", "grid", "values"), LAYOUTS, ids=str)
def test_patches_are_taken_in_order_and_put_back(layout, grid, values, outputs):
    """A prediction may have more channels than the latent."""
    shape = (2, layout.height, layout.width, outputs * layout.channels)
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    tokens = layout.patchify(jnp.asarray(x))
    assert tokens.shape == (2, layout.tokens, values * outputs * layout.channels)
    np.testing.assert_array_equal(tokens, plain_patchify(x, layout))
    np.testing.assert_array_equal(layout.unpatchify(tokens), x)


@pytest.mark.parametrize(("layout", "grid", "values"), LAYOUTS, ids=str)
def test_no_two_tokens_share_a_position(layout, grid, values):
    table = layout.position_table(16)
    assert table.shape == (layout.tokens, 16) and table.dtype == np.float32
    assert len(np.unique(table.round(5), axis=0)) == layout.tokens
    assert np.abs(table).max() <= 1


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ((8, 8, 4, 3), ["patch size 3", "side 8"]),
        ((8, 6, 4, 4), ["patch size 4", "side 6"]),
        ((6, 8, 4, 4), ["patch size 4", "side 6"]),
        ((7, 1, 4, 2), ["patch size 2", "side 7"]),
        ((1, 8, 4, 2), ["patch size 2", "side 1"]),
        ((0, 8, 4, 2), ["height is 0"]),
        ((8, 0, 4, 2), ["width is 0"]),
        ((8, 8, -4, 2), ["channels is -4"]),
        ((8, 8, 4, 0), ["patch is 0"]),
    ],
    ids=str,
)
def test_bad_sizes_are_refused_in_one_line(sizes, words):
    with pytest.raises(InputError) as error:
        LatentLayout(*sizes)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)
