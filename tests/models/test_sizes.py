"""The published sizes against the numbers that the DiT paper prints, at 256px and patch 2."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import OUTPUTS

from sra_jax.conditioning import ClassLabels
from sra_jax.core.errors import InputError
from sra_jax.methods import SRA
from sra_jax.models import SIZES, DiT, DiTConfig, LatentLayout, name_variant, parse_variant
from sra_jax.training.flops import count_flops

PUBLISHED_MILLIONS = {"S": 33, "B": 130, "L": 458, "XL": 675}
PUBLISHED_GIGA_MULTIPLY_ADDS = {"S": 6.06, "B": 23.01, "L": 80.71, "XL": 118.64}


def make(kind, name):
    size, patch = parse_variant(name)
    layout = LatentLayout(32, 32, 4, patch)
    trunk = DiT(DiTConfig(layout, ClassLabels(1000), OUTPUTS[kind], **size._asdict()))
    return trunk, jax.eval_shape(trunk.init, jax.random.key(0))


def forward_multiply_adds(trunk, params):
    shape = jax.ShapeDtypeStruct
    image, t = shape((1, 32, 32, 4), jnp.float32), shape((1,), jnp.float32)

    def forward(params, x, t, labels):
        return trunk.apply(params, x, t, {"labels": labels}).prediction

    return count_flops(forward, params, image, t, shape((1,), jnp.int32)) // 2


@pytest.mark.parametrize("size", SIZES)
def test_published_parameter_counts(size):
    _, params = make("dit", f"{size}/2")
    count = sum(np.prod(a.shape, dtype=np.int64) for a in jax.tree.leaves(params))
    assert abs(count / 1e6 - PUBLISHED_MILLIONS[size]) < 0.6  # printed as 130 for 130.51


def test_exact_parameter_count_of_xl():
    """675,129,632 is what `sum(p.numel())` says of the released DiT-XL/2."""
    _, params = make("dit", "XL/2")
    assert sum(np.prod(a.shape, dtype=np.int64) for a in jax.tree.leaves(params)) == 675_129_632


@pytest.mark.parametrize("size", SIZES)
def test_published_multiply_adds(size):
    """The paper's counter adds one operation for every element that a layer norm normalises to the
    matrix products: with them, all four numbers are met to their last digit."""
    trunk, params = make("dit", f"{size}/2")
    config = trunk.config
    normalised = (2 * config.depth + 1) * config.layout.tokens * config.width
    giga = (forward_multiply_adds(trunk, params) + normalised) / 1e9
    assert round(giga, 2) == PUBLISHED_GIGA_MULTIPLY_ADDS[size]


@pytest.mark.parametrize("size", SIZES)
def test_sit_differs_by_the_variance_channels_alone(size):
    """DiT predicts four channels more in each of the 1024 pixels."""
    counts = [forward_multiply_adds(*make(kind, f"{size}/2")) for kind in ("dit", "sit")]
    assert counts[0] - counts[1] == 1024 * 4 * SIZES[size].width


@pytest.mark.parametrize(
    ("name", "shape", "sit", "dit", "patch"),
    [
        ("S/8", (12, 384, 6), (3, 8), (3, 7), 8),
        ("B/4", (12, 768, 12), (3, 8), (3, 7), 4),
        ("L/2", (24, 1024, 16), (6, 16), (6, 14), 2),
        ("XL/2", (28, 1152, 16), (8, 20), (8, 16), 2),
    ],
)
def test_names_and_their_blocks(name, shape, sit, dit, patch):
    size, parsed = parse_variant(name)
    assert (size.depth, size.width, size.num_heads) == shape
    assert parsed == patch
    assert name_variant(size.width, size.depth, size.num_heads, patch) == name
    for outputs, blocks in ((1, sit), (2, dit)):
        recipe = SRA.recipe("paper", name.partition("/")[0], outputs, resolution=256)
        assert (recipe["student_block"], recipe["teacher_block"]) == blocks


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("XL", "'XL'"),
        ("XL/3", "2, 4, 8"),
        ("XL/", "'XL/'"),
        ("XXL/2", "did you mean 'XL'"),
        ("/2", "''"),
        ("", "''"),
        ("XL/2/2", "'XL/2/2'"),
        ("xl/2", "'xl'"),
    ],
)
def test_unknown_names_are_refused_in_one_line(name, word):
    with pytest.raises(InputError) as error:
        parse_variant(name)
    assert word in str(error.value) and "\n" not in str(error.value)
