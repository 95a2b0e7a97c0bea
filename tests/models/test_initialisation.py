"""Parameters before training, against the distributions that they are drawn from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import Jitted
from scipy import stats
from tiny import OUTPUTS, SMALL, make_objective, random_inputs, vary

from sra_jax.models import DiT, LatentLayout


@pytest.fixture(scope="module")
def fresh():
    """A model, and first parameters of its trunk and of SRA's head."""
    config = vary(SMALL, width=64, depth=4, num_classes=500)
    return Jitted(config), jax.jit(make_objective(config).init)(5)


@pytest.mark.parametrize(
    ("path", "fan_in", "fan_out"),
    [
        ("trunk/patch_embed/kernel", 16, 64),
        ("trunk/blocks/attention/qkv/kernel", 64, 3 * 64),
        ("trunk/blocks/attention/proj/kernel", 64, 64),
        ("trunk/blocks/mlp/fc1/kernel", 64, 256),
        ("trunk/blocks/mlp/fc2/kernel", 256, 64),
        ("method/sra/fc1/kernel", 64, 128),
        ("method/sra/fc2/kernel", 128, 64),
    ],
)
def test_linear_weights_start_xavier_uniform(fresh, path, fan_in, fan_out):
    weights = leaf(fresh[1], path)
    bound = np.sqrt(6 / (fan_in + fan_out))
    assert np.abs(weights).max() <= bound * (1 + 1e-6)
    assert np.abs(weights).max() > 0.995 * bound
    uniform = stats.uniform(-bound, 2 * bound)
    assert stats.kstest(weights.ravel(), uniform.cdf).pvalue > 0.01


@pytest.mark.parametrize(
    "path",
    ["trunk/label_embed/embedding", "trunk/time_embed/fc1/kernel", "trunk/time_embed/fc2/kernel"],
)
def test_embeddings_start_normal(fresh, path):
    weights = leaf(fresh[1], path)
    assert stats.kstest(weights.ravel(), stats.norm(0, 0.02).cdf).pvalue > 0.01


def test_biases_modulation_and_output_start_at_zero(fresh):
    leaves = jax.tree_util.tree_leaves_with_path(fresh[1])
    names = {"/".join(key.key for key in path): np.asarray(array) for path, array in leaves}
    zero = {name for name in names if name.endswith("bias") or "modulation" in name}
    zero |= {"trunk/final/linear/kernel"}
    assert len(zero) == 1 + 2 + 4 + 2 + 2 + 2 + 2  # patches, time, block, head, two, final's
    assert {name for name, array in names.items() if not array.any()} == zero


def test_parameters_are_float32_and_blocks_differ(fresh):
    _, params = fresh
    assert all(array.dtype == jnp.float32 for array in jax.tree.leaves(params))
    for path in ("attention/qkv", "attention/proj", "mlp/fc1", "mlp/fc2"):
        kernels = leaf(params, f"trunk/blocks/{path}/kernel").reshape(4, -1)
        assert np.abs(np.corrcoef(kernels) - np.eye(4)).max() < 5 / np.sqrt(kernels.shape[1])


def test_fresh_blocks_are_the_identity_and_predict_zero(fresh):
    model, params = fresh
    out = model(params, *random_inputs(model.config, seed=6), taps="all")
    assert not np.asarray(out.prediction).any()
    assert np.asarray(out.features[1]).std() > 0.1
    np.testing.assert_array_equal(out.features[1], out.features[4])


@pytest.mark.parametrize(
    ("rows", "columns", "width"), [(4, 4, 32), (16, 16, 48), (1, 1, 8), (2, 5, 16)]
)
def test_position_table(rows, columns, width):
    config = vary(SMALL, layout=LatentLayout(2 * rows, 2 * columns, 4, 2), width=width, num_heads=2)
    table = jax.jit(lambda key: DiT(config).init(key)["pos_embed"])(jax.random.key(0))
    quarter = width // 4
    expected = np.zeros((rows * columns, width))
    for y in range(rows):
        for x in range(columns):
            for i in range(quarter):
                frequency = 1 / 10000 ** (i / quarter)
                halves = zip((0, 2), (x, y), strict=True)
                for part, place in halves:
                    expected[y * columns + x, part * quarter + i] = np.sin(place * frequency)
                    expected[y * columns + x, (part + 1) * quarter + i] = np.cos(place * frequency)
    np.testing.assert_allclose(table, expected, atol=1e-7)


def test_position_table_of_a_sequence():
    """One dimension: sine and cosine alternate (MAE-Tok)."""
    layout, width = LatentLayout(7, 1, 32, patch=1), 16
    config = vary(SMALL, layout=layout, width=width)
    table = jax.jit(lambda key: DiT(config).init(key)["pos_embed"])(jax.random.key(0))
    expected = np.zeros((7, width))
    for n in range(7):
        for i in range(width // 2):
            frequency = 10000 ** (-2 * i / width)
            expected[n, 2 * i : 2 * i + 2] = np.sin(n * frequency), np.cos(n * frequency)
    np.testing.assert_allclose(table, expected, atol=1e-7)


@pytest.mark.parametrize("kind", OUTPUTS)
def test_the_trunk_does_not_depend_on_the_method(kind):
    model = Jitted(vary(SMALL, kind=kind))
    with_head, without = (
        jax.jit(objective.init)(0)
        for objective in (make_objective(model.config), make_objective(model.config, method=None))
    )
    assert without["method"] == {}
    assert jax.tree.map(jnp.shape, with_head["method"]["sra"]) == {
        "fc1": {"kernel": (32, 64), "bias": (64,)},
        "fc2": {"kernel": (64, 32), "bias": (32,)},
    }
    jax.tree.map(np.testing.assert_array_equal, with_head["trunk"], without["trunk"])
    out = model(without, *random_inputs(model.config, seed=7), taps=(2,))
    assert out.prediction.shape == (3, 8, 8, 4 if kind == "sit" else 8)
    assert out.features[2].shape == (3, 16, 32)


def leaf(tree, path):
    for name in path.split("/"):
        tree = tree[name]
    return np.asarray(tree)
