"""Parameters before training, against the distributions that they are drawn from."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import Jitted
from scipy import stats
from tiny import SMALL, random_inputs

from sra_jax.models import DiffusionTransformer, init_params


@pytest.fixture(scope="module")
def fresh():
    config = dataclasses.replace(SMALL, width=64, depth=4, num_classes=500)
    model = Jitted(config)
    return model, jax.jit(partial(init_params, model.module, head=True))(jax.random.key(5))


@pytest.mark.parametrize(
    ("path", "fan_in", "fan_out"),
    [
        ("patch_embed/kernel", 16, 64),
        ("blocks/attention/qkv/kernel", 64, 3 * 64),
        ("blocks/attention/proj/kernel", 64, 64),
        ("blocks/mlp/fc1/kernel", 64, 256),
        ("blocks/mlp/fc2/kernel", 256, 64),
        ("head/fc1/kernel", 64, 128),
        ("head/fc2/kernel", 128, 64),
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
    "path", ["label_embed/embedding", "time_embed/fc1/kernel", "time_embed/fc2/kernel"]
)
def test_embeddings_start_normal(fresh, path):
    weights = leaf(fresh[1], path)
    assert stats.kstest(weights.ravel(), stats.norm(0, 0.02).cdf).pvalue > 0.01


def test_biases_modulation_and_output_start_at_zero(fresh):
    leaves = jax.tree_util.tree_leaves_with_path(fresh[1])
    names = {"/".join(key.key for key in path): np.asarray(array) for path, array in leaves}
    zero = {name for name in names if name.endswith("bias") or "modulation" in name}
    zero |= {"final/linear/kernel"}
    assert len(zero) == 1 + 2 + 4 + 2 + 2 + 2 + 2  # patches, time, block, head, two, final's
    assert {name for name, array in names.items() if not array.any()} == zero


def test_parameters_are_float32_and_blocks_differ(fresh):
    _, params = fresh
    assert all(array.dtype == jnp.float32 for array in jax.tree.leaves(params))
    for path in ("attention/qkv", "attention/proj", "mlp/fc1", "mlp/fc2"):
        kernels = leaf(params["blocks"], f"{path}/kernel").reshape(4, -1)
        assert np.abs(np.corrcoef(kernels) - np.eye(4)).max() < 5 / np.sqrt(kernels.shape[1])


def test_fresh_blocks_are_the_identity_and_predict_zero(fresh):
    model, params = fresh
    out = model(params, *random_inputs(model.config, seed=6), taps="all")
    assert not np.asarray(out.prediction).any()
    assert np.asarray(out.features[1]).std() > 0.1
    np.testing.assert_array_equal(out.features[1], out.features[4])


@pytest.mark.parametrize(("grid", "width"), [(4, 32), (16, 48), (1, 8)])
def test_position_table(grid, width):
    config = dataclasses.replace(SMALL, input_size=2 * grid, width=width, num_heads=2)
    init = partial(init_params, DiffusionTransformer(config), head=False)
    table = jax.jit(lambda key: init(key)["pos_embed"])(jax.random.key(0))
    quarter = width // 4
    expected = np.zeros((grid * grid, width))
    for y in range(grid):
        for x in range(grid):
            for i in range(quarter):
                frequency = 1 / 10000 ** (i / quarter)
                halves = zip((0, 2), (x, y), strict=True)
                for part, place in halves:
                    expected[y * grid + x, part * quarter + i] = np.sin(place * frequency)
                    expected[y * grid + x, (part + 1) * quarter + i] = np.cos(place * frequency)
    np.testing.assert_allclose(table, expected, atol=1e-7)


@pytest.mark.parametrize("kind", ["sit", "dit"])
def test_head_is_made_only_when_asked(kind):
    model = Jitted(dataclasses.replace(SMALL, kind=kind))
    init = jax.jit(partial(init_params, model.module), static_argnames="head")
    with_head, without = (init(jax.random.key(0), head=head) for head in (True, False))
    assert "head" not in without
    assert jax.tree.map(jnp.shape, with_head.pop("head")) == {
        "fc1": {"kernel": (32, 64), "bias": (64,)},
        "fc2": {"kernel": (64, 32), "bias": (32,)},
    }
    jax.tree.map(np.testing.assert_array_equal, with_head, without)
    out = model(without, *random_inputs(model.config, seed=7), taps=(2,))
    assert out.prediction.shape == (3, 8, 8, 4 if kind == "sit" else 8)
    assert out.features[2].shape == (3, 16, 32)


def leaf(tree, path):
    for name in path.split("/"):
        tree = tree[name]
    return np.asarray(tree)
