"""Parameters to and from PyTorch: nothing is changed on the way, and nothing goes missing."""

import jax
import numpy as np
import pytest
from golden import random_state_dict
from tiny import make_objective, vary

from sra_jax.conditioning import ClassLabels
from sra_jax.core.errors import InputError
from sra_jax.methods import SRA
from sra_jax.models import DiTConfig, LatentLayout
from sra_jax.torch_weights import from_torch, to_torch

SIT = DiTConfig(
    LatentLayout(8, 8, 3, patch=2), ClassLabels(5), outputs=1, width=24, depth=3, num_heads=2
)
CONFIGS = {
    "sit": SIT,
    "dit, patch 4": vary(SIT, kind="dit", patch=4, channels=4, num_heads=6),
    "sit, patch 8, one block": vary(SIT, patch=8, depth=1, mlp_ratio=2),
    "sit, not square": vary(SIT, layout=LatentLayout(4, 10, 3, patch=2)),
}


def assert_identical(actual, expected):
    assert set(actual) == set(expected)
    for name, array in expected.items():
        assert actual[name].dtype == np.float32 and actual[name].shape == array.shape, name
        assert actual[name].tobytes() == np.ascontiguousarray(array).tobytes(), name


@pytest.mark.parametrize("head", [True, False], ids=["head", "no head"])
@pytest.mark.parametrize("name", CONFIGS)
def test_from_pytorch_and_back(name, head):
    config = CONFIGS[name]
    state = random_state_dict(config, seed=0, head=head)
    params = from_torch(state, config)
    assert params.keys() == {"trunk", "method"}
    assert params["method"].keys() == ({"sra"} if head else set())
    assert_identical(to_torch(params, config), state)


@pytest.mark.parametrize("head", [True, False], ids=["head", "no head"])
@pytest.mark.parametrize("name", CONFIGS)
def test_to_pytorch_and_back(name, head):
    """Of a tree that is random throughout and shaped as an objective makes it."""
    config, rng = CONFIGS[name], np.random.default_rng(1)
    method = SRA(student_block=1, teacher_block=1, head=head)
    shapes = jax.eval_shape(lambda: make_objective(config, method).init(0))
    params = jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32), shapes)
    back = from_torch(to_torch(params, config), config)
    assert jax.tree.structure(back) == jax.tree.structure(params)
    for ours, theirs in zip(jax.tree.leaves(back), jax.tree.leaves(params), strict=True):
        assert ours.dtype == np.float32
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("which", ["student", "teacher", "after/student", "after/teacher"])
def test_golden_weights_of_sit_go_and_come_back(sit, which):
    state = sit.state_dict(which)
    assert_identical(to_torch(from_torch(state, sit.config), sit.config), state)


@pytest.mark.parametrize("which", ["student", "teacher"])
def test_golden_weights_of_dit_go_and_come_back(dit, which):
    state = dit.state_dict(which)
    assert_identical(to_torch(from_torch(state, dit.config), dit.config), state)


def test_jax_arrays_are_taken_too():
    state = random_state_dict(SIT, seed=2, head=True)
    params = jax.tree.map(jax.numpy.asarray, from_torch(state, SIT))
    exported = to_torch(params, SIT)
    assert all(isinstance(array, np.ndarray) for array in exported.values())
    assert_identical(exported, state)


def drop(*names):
    return lambda state: [state.pop(name) for name in names]


def add(name, shape=(2,)):
    return lambda state: state.update({name: np.zeros(shape, np.float32)})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (drop("final_layer.linear.bias"), ["1 missing (final_layer.linear.bias)"]),
        (
            drop("blocks.1.mlp.fc1.weight", "blocks.1.mlp.fc1.bias"),
            ["2 missing (blocks.1.mlp.fc1.bias, blocks.1.mlp.fc1.weight)"],
        ),
        (drop("ap_head.linear2.weight"), ["1 missing (ap_head.linear2.weight)"]),
        (add("blocks.3.mlp.fc1.bias"), ["1 left over (blocks.3.mlp.fc1.bias)"]),
        (add("module.pos_embed"), ["1 left over (module.pos_embed)"]),
        (
            lambda state: [add(f"extra.{i}")(state) for i in range(6)],
            ["6 left over", "extra.0", "extra.3 and 2 more"],
        ),
        (
            lambda state: (drop("pos_embed")(state), add("pos_embeds")(state)),
            ["1 missing (pos_embed)", "1 left over (pos_embeds)"],
        ),
        (
            add("x_embedder.proj.weight", (24, 3, 4, 4)),
            ["x_embedder.proj.weight", "(24, 3, 4, 4)", "(24, 3, 2, 2)"],
        ),
        (
            add("final_layer.linear.weight", (24, 24)),
            ["final_layer.linear.weight", "(24, 24)", "(12, 24)"],
        ),
        (
            add("y_embedder.embedding_table.weight", (5, 24)),
            ["y_embedder.embedding_table.weight", "(5, 24)", "(6, 24)"],
        ),
        (add("blocks.2.attn.qkv.weight", (24, 72)), ["blocks.2.attn.qkv.weight", "(72, 24)"]),
    ],
    ids=range(11),
)
def test_what_does_not_fit_is_named_in_one_line(change, words):
    state = random_state_dict(SIT, seed=3, head=True)
    change(state)
    with pytest.raises(InputError) as error:
        from_torch(state, SIT)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_a_model_of_the_other_kind_is_refused():
    """A checkpoint that predicts no variance does not fit DiT, whose output has twice the rows."""
    state = random_state_dict(SIT, seed=4, head=False)
    with pytest.raises(InputError, match=r"final_layer.linear.*\(12,.*\(24,"):
        from_torch(state, vary(SIT, kind="dit"))
