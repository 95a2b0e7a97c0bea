"""What every method owes: one contract over all of METHODS, at the smallest published size.

Each is tried on a trunk of 12 narrow blocks, with the fields of its paper's recipe.
"""

import dataclasses
from functools import cache, partial

import jax
import numpy as np
import pytest
from golden import ROUNDING, relative_error

from sra_jax.checkpoints.store import CheckpointStore
from sra_jax.conditioning import ClassLabels
from sra_jax.config.methods import read_methods
from sra_jax.distributed import sharding
from sra_jax.distributed.mesh import MeshConfig, batch_sharding, make_mesh, replicated
from sra_jax.methods import METHODS
from sra_jax.models import SIZES, DiT, DiTConfig, LatentLayout
from sra_jax.processes import Interpolant
from sra_jax.training.objective import Objective
from sra_jax.training.optimizer import OptimizerConfig, make_optimizer
from sra_jax.training.state import from_trees, init_state, to_trees
from sra_jax.training.step import StepConfig, draw_example, make_train_step

LABELS = ClassLabels(10)
CONFIG = DiTConfig(LatentLayout(8, 8, 2, 2), LABELS, outputs=1, width=16, depth=12, num_heads=2)
OPTIMIZER = make_optimizer(OptimizerConfig(learning_rate=1e-2, eps=1e-2))
BATCH = 16

each_method = pytest.mark.parametrize("name", METHODS)


def make(name, **fields):
    """A method by its paper's recipe."""
    recipe = METHODS[name].recipe(METHODS[name].recipes[0], "S", 1, 256)
    (method,) = read_methods({name: recipe | fields}, steps_per_epoch=1)
    return method


def objective(*names, trunk=None):
    methods = tuple(make(name) for name in names)
    return Objective(trunk or DiT(CONFIG), Interpolant(), LABELS, methods)


def make_batch(of):
    rng, shape = np.random.default_rng(0), (BATCH, 8, 8, 2)
    moments = np.concatenate([rng.normal(size=shape), np.full(shape, 0.5)], -1)
    batch = {"moments": moments.astype("f"), "labels": rng.integers(0, 10, BATCH).astype("i4")}
    for method in of.methods:
        for field, spec in method.fields(of.trunk.sizes).items():
            batch[field] = rng.normal(size=(BATCH, *spec.shape)).astype(spec.dtype)
    return batch


@cache
def live_state(*names):
    """A first state whose modulation is not zero: in a fresh model most gradients are."""
    state = jax.jit(partial(init_state, objective(*names), OPTIMIZER, 0))()
    rng = np.random.default_rng(1)
    moved = jax.tree.map(lambda a: a + 0.1 * rng.normal(size=a.shape).astype("f"), state.params)
    moved["trunk"]["pos_embed"] = state.params["trunk"]["pos_embed"]
    return state._replace(params=moved)


def take_step(of, state, microbatches=1, place=lambda tree, is_batch: tree):
    """The state and metrics after one step, as numpy arrays."""
    step = jax.jit(make_train_step(of, OPTIMIZER, StepConfig(microbatches=microbatches)))
    found = step(place(state, False), place(make_batch(of), True))
    return jax.tree.map(np.asarray, found)


@cache
def one_step(name):
    return take_step(objective(name), live_state(name))


def assert_same(found, expected):
    """The same state and metrics, but for rounding."""
    (state, metrics), (expected_state, expected_metrics) = found, expected
    assert metrics.keys() == expected_metrics.keys()
    for key, value in expected_metrics.items():
        np.testing.assert_allclose(metrics[key], value, rtol=2 * ROUNDING, err_msg=key)
    paths = jax.tree_util.tree_leaves_with_path(expected_state)
    for leaf, (path, other) in zip(jax.tree.leaves(state), paths, strict=True):
        if np.any(other):
            assert relative_error(leaf, other) < 2 * ROUNDING, jax.tree_util.keystr(path)


@each_method
def test_two_microbatches_are_one(name):
    assert_same(take_step(objective(name), live_state(name), microbatches=2), one_step(name))


@each_method
def test_eight_devices_are_one(name):
    mesh = make_mesh(MeshConfig())

    def place(tree, is_batch):
        return jax.device_put(tree, batch_sharding(mesh) if is_batch else replicated(mesh))

    split = objective(name, trunk=DiT(CONFIG, batch_sharding(mesh)))
    assert_same(take_step(split, live_state(name), place=place), one_step(name))


@each_method
def test_it_can_be_sharded_by_the_fallback_alone(name, monkeypatch):
    """Without any rule every array is split over eight devices, if an axis divides."""
    monkeypatch.setattr(sharding, "SPLIT_BYTES", 1)
    mesh = make_mesh(MeshConfig(data=1, fsdp=8))
    state = live_state(name)
    shardings = sharding.tree_shardings(state, mesh, ())
    own = jax.tree.leaves(shardings.params["method"])
    assert all(not leaf.is_fully_replicated for leaf in own)

    def place(tree, is_batch):
        return jax.device_put(tree, batch_sharding(mesh) if is_batch else shardings)

    split = objective(name, trunk=DiT(CONFIG, batch_sharding(mesh)))
    assert_same(take_step(split, state, place=place), one_step(name))


@each_method
def test_its_state_is_saved_and_restored(name, tmp_path):
    state = live_state(name)
    with CheckpointStore(tmp_path) as store:
        store.save(3, to_trees(state), {})
    shapes = jax.eval_shape(lambda: to_trees(state))
    with CheckpointStore(tmp_path) as store:
        _, trees = store.restore(shapes)
    restored = from_trees(trees)
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, restored, state)


@each_method
def test_no_gradient_reaches_the_teacher(name):
    of, state = objective(name), live_state(name)

    @jax.jit
    def gradient(ema, batch):
        example = draw_example(of, StepConfig(), batch, 0)
        return jax.grad(lambda e: of(state.params, e, state.method_state, example, 0)[0])(ema)

    assert all(not np.any(leaf) for leaf in jax.tree.leaves(gradient(state.ema, make_batch(of))))


@each_method
def test_adding_it_changes_no_other_first_parameter(name):
    others = [other for other in METHODS if other != name][:1]
    without, with_it = jax.jit(
        lambda: (objective(*others).init(5), objective(name, *others).init(5))
    )()
    with_it["method"].pop(name, None)
    jax.tree.map(np.testing.assert_array_equal, with_it, without)


@each_method
def test_of_weight_0_it_is_plain_sit(name):
    """A config with weight 0 has no method, and so nothing but the generation loss."""
    recipe = METHODS[name].recipe(METHODS[name].recipes[0], "S", 1, 256)
    assert read_methods({name: recipe | {"weight": 0}}, 1) == read_methods({}, 1) == ()


def test_without_a_method_the_loss_is_the_generation_loss():
    state, metrics = take_step(objective(), live_state())
    assert metrics.keys() == {"loss", "generation", "grad_norm"}
    assert metrics["loss"] == metrics["generation"]
    assert state.params["method"] == {} and state.method_state == {}


@each_method
def test_its_metrics_are_finite_scalars(name):
    _, metrics = one_step(name)
    assert {"loss", "generation", "grad_norm"} < metrics.keys()
    for key, value in metrics.items():
        assert value.shape == () and np.isfinite(value), key


@each_method
@pytest.mark.parametrize("outputs", [1, 2], ids=["sit", "dit"])
def test_every_recipe_fits_every_size(name, outputs):
    kind = METHODS[name]
    for recipe in kind.recipes:
        for size, shape in SIZES.items():
            for resolution in (256, 512):
                fields = kind.recipe(recipe, size, outputs, resolution)
                (method,) = read_methods({name: fields}, steps_per_epoch=1)
                sizes = DiT(dataclasses.replace(CONFIG, depth=shape.depth)).sizes
                method.check(sizes)


def test_methods_can_be_combined():
    """Every pair shares one student pass, and each reports under names of its own."""
    names = list(METHODS)
    of = objective(*names)
    _, metrics = take_step(of, live_state(*names))
    assert all(np.isfinite(value) for value in metrics.values())
