"""The train step: the authors' numbers, the same updates on any devices, what it donates."""

import dataclasses
import functools
import warnings
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import (
    AFTER_THREE_STEPS,
    LOSSES,
    ROUNDING,
    SIT_GRADIENTS,
    relative_error,
    worst_error,
)
from golden_kinds.shared import make_example, make_gradient
from tiny import METHOD, TINY, make_batch, make_objective

from sra_jax.core.errors import InputError
from sra_jax.distributed.mesh import MeshConfig, batch_sharding, make_mesh, replicated
from sra_jax.models import DiT
from sra_jax.pods.hlo import Program
from sra_jax.processes import Interpolant
from sra_jax.torch_weights import to_torch
from sra_jax.training.optimizer import OptimizerConfig, make_optimizer
from sra_jax.training.state import TrainState, init_state, nonfinite_leaves
from sra_jax.training.step import StepConfig, accumulate_gradients, apply_gradients, make_train_step

# Against the authors' code, in two microbatches; test_check_golden.py does it in one, and for DiT.


def make_golden_step(golden, optimizer):
    """The step on a drawn example, compiled: (state, example) -> (state, gradient, metrics)."""
    differentiate = make_gradient(golden, Interpolant(), microbatches=2)

    def step(state, example):
        gradient, metrics = differentiate(state.params, state.ema, example, state.step)
        return apply_gradients(state, gradient, optimizer, 0.9), gradient, metrics

    return jax.jit(step)


def start(golden, optimizer):
    student, teacher = golden.params("student"), golden.params("teacher")
    return TrainState(jnp.int32(0), student, teacher, optimizer.init(student), {})


def sit_example(sit, i):
    t = sit.jax(f"train/{i}/u_time")
    t_teacher = Interpolant().earlier(t, sit.jax(f"train/{i}/u_gap"), 0.2)
    x, noise = sit.images("loss/latents"), sit.images(f"train/{i}/noise")
    return make_example(x, sit.jax("loss/labels", jnp.int32), noise, t, t_teacher)


@pytest.fixture(scope="module")
def three_steps(sit):
    """States, gradients and metrics of three steps on the golden draws, in two microbatches."""
    optimizer = make_optimizer(OptimizerConfig(learning_rate=sit.meta["lr"]))
    step = make_golden_step(sit, optimizer)
    state, history = start(sit, optimizer), []
    for i in range(3):
        state, gradient, metrics = step(state, sit_example(sit, i))
        history.append((state, gradient, metrics))
    return history


def test_sit_gradient_is_golden(sit, three_steps):
    gradient = to_torch(three_steps[0][1], sit.config)
    assert not gradient.pop("pos_embed").any()
    error, name = worst_error(gradient, sit.state_dict("grad"))
    assert error < SIT_GRADIENTS, name


def test_losses_and_gradient_norms_of_three_steps_are_golden(sit, three_steps):
    for name in ("generation", "alignment"):
        ours = [metrics[name] for _, _, metrics in three_steps]
        assert np.abs(ours / sit[f"train/{name}"] - 1).max() < LOSSES, name
    norms = [global_norm(gradient) for _, gradient, _ in three_steps]
    assert np.abs(norms / sit["train/grad_norm"] - 1).max() < SIT_GRADIENTS
    losses = [metrics["loss"] for _, _, metrics in three_steps]
    expected = sit["train/generation"] + 0.2 * sit["train/alignment"]
    assert np.abs(losses / expected - 1).max() < LOSSES


def global_norm(tree):
    return np.sqrt(sum(np.sum(np.square(leaf, dtype=np.float64)) for leaf in jax.tree.leaves(tree)))


@pytest.mark.parametrize("which", ["student", "teacher"])
def test_parameters_after_three_steps_are_golden(sit, three_steps, which):
    state = three_steps[-1][0]
    params = {"student": state.params, "teacher": state.ema}[which]
    error, name = worst_error(to_torch(params, sit.config), sit.state_dict(f"after/{which}"))
    assert error < AFTER_THREE_STEPS, name
    assert state.step == 3


# The whole step, on batches of moments.

# A large epsilon keeps Adam from dividing the rounding of a gradient by its own size.
OPTIMIZER = OptimizerConfig(learning_rate=1e-2, eps=1e-2)


@pytest.fixture(scope="module")
def live_state():
    """A first state whose modulation is not zero: in a fresh model most gradients are."""
    optimizer, rng = make_optimizer(OPTIMIZER), np.random.default_rng(1)
    state = jax.jit(partial(init_state, make_objective(), optimizer, 0))()
    params = jax.tree.map(lambda a: a + 0.1 * rng.normal(size=a.shape).astype("f"), state.params)
    params["trunk"]["pos_embed"] = state.params["trunk"]["pos_embed"]
    return state._replace(params=params, ema=jax.tree.map(jnp.copy, state.params))


class Run(NamedTuple):
    """The donated first state, the last one, and (state as numpy arrays, metrics) of each step."""

    first: TrainState
    last: TrainState
    history: list


@pytest.fixture(scope="module")
def run_tiny(live_state):
    """From microbatches, weight decay and a way to place arrays on devices, to three steps from a
    copy of `live_state`."""

    @functools.cache
    def run(
        microbatches=1, weight_decay=0.0, place=lambda tree, is_batch: tree, teacher_fraction=1.0
    ):
        config = StepConfig(microbatches=microbatches, ema_decay=0.9, scale=0.7, shift=0.1)
        optimizer = make_optimizer(dataclasses.replace(OPTIMIZER, weight_decay=weight_decay))
        objective = make_objective(
            method=dataclasses.replace(METHOD, teacher_fraction=teacher_fraction)
        )
        step = jax.jit(make_train_step(objective, optimizer, config), donate_argnums=0)
        first = state = place(jax.tree.map(jnp.copy, live_state), False)
        history = []
        for _ in range(3):
            with warnings.catch_warnings():
                warnings.filterwarnings("error", "Some donated buffers were not usable")
                state, metrics = step(state, place(make_batch(), True))
            history.append((jax.tree.map(np.array, state), metrics))
        return Run(first, state, history)

    return run


def test_microbatches_change_no_update(live_state, run_tiny):
    """The same draws and the same mean gradient."""
    assert_same_steps(run_tiny(microbatches=4).history, run_tiny().history)
    moved = worst_error(flatten(run_tiny().history[0][0].params), flatten(live_state.params))
    assert moved[0] > 1e-2


def test_microbatches_change_no_update_of_a_part_that_is_aligned(run_tiny):
    """In each microbatch the same examples are aligned as in the whole batch."""
    split, whole = (run_tiny(microbatches=n, teacher_fraction=0.5) for n in (2, 1))
    assert_same_steps(split.history, whole.history)
    alignment = [run.history[0][1]["alignment"] for run in (whole, run_tiny())]
    assert abs(alignment[0] / alignment[1] - 1) > 1e-3


def test_a_part_that_is_aligned_needs_no_exchange():
    """Devices keep their own examples: eight of them send what they do without a fraction."""
    mesh = make_mesh(MeshConfig())
    copied, split = replicated(mesh), batch_sharding(mesh)
    optimizer, batch = make_optimizer(OPTIMIZER), make_batch(32)

    def exchanges(fraction):
        objective = make_objective(method=dataclasses.replace(METHOD, teacher_fraction=fraction))
        objective = dataclasses.replace(objective, trunk=DiT(TINY, split))
        step = make_train_step(objective, optimizer, StepConfig())
        state = jax.eval_shape(partial(init_state, objective, optimizer, 0))
        jitted = jax.jit(step, in_shardings=(copied, split), out_shardings=copied)
        collectives = Program(jitted.lower(state, batch).compile().as_text()).collectives()
        return {(each.kind, each.size, each.count) for each in collectives}

    assert exchanges(0.25) == exchanges(1.0)


def test_steps_on_eight_devices_are_those_on_one(run_tiny):
    mesh = make_mesh(MeshConfig())

    def place(tree, is_batch):
        return jax.device_put(tree, batch_sharding(mesh) if is_batch else replicated(mesh))

    sharded = run_tiny(place=place)
    assert all(len(a.sharding.device_set) == 8 for a in jax.tree.leaves(sharded.last))
    assert_same_steps(sharded.history, run_tiny().history)


def assert_same_steps(actual, expected):
    for (state, metrics), (expected_state, expected_metrics) in zip(actual, expected, strict=True):
        for name, value in expected_metrics.items():
            np.testing.assert_allclose(metrics[name], value, rtol=ROUNDING, err_msg=name)
        for ours, theirs in (
            (state.params, expected_state.params),
            (state.ema, expected_state.ema),
        ):
            error, name = worst_error(flatten(ours), flatten(theirs))
            assert error < ROUNDING, name


def flatten(params):
    """Leaves by name."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def test_position_table_never_moves(live_state, run_tiny):
    last, _ = run_tiny(weight_decay=0.1).history[-1]
    table = live_state.params["trunk"]["pos_embed"]
    np.testing.assert_array_equal(last.params["trunk"]["pos_embed"], table)
    assert relative_error(last.ema["trunk"]["pos_embed"], table) < ROUNDING
    before, after = flatten(live_state.params), flatten(last.params)
    still = [name for name in before if np.array_equal(before[name], after[name])]
    assert still == ["['trunk']['pos_embed']"]


def test_weight_decay_is_that_of_adamw(live_state, run_tiny):
    """It takes lr * decay of the parameter off, beside the update without it."""
    runs = run_tiny(weight_decay=0.1), run_tiny()
    with_decay, without = (flatten(run.history[0][0].params) for run in runs)
    for name, before in flatten(live_state.params).items():
        if name != "['trunk']['pos_embed']":
            taken = without[name] - with_decay[name]
            np.testing.assert_allclose(taken, 1e-2 * 0.1 * before, atol=3e-7, err_msg=name)


def test_ema_follows_the_updated_parameters(live_state, run_tiny):
    ema = flatten(live_state.ema)
    for state, _ in run_tiny().history:
        params = flatten(state.params)
        ema = {name: 0.9 * ema[name].astype("f8") + 0.1 * params[name] for name in ema}
        error, name = worst_error(flatten(state.ema), ema)
        assert error < ROUNDING, name


def test_metrics_are_finite_scalars_of_their_step(run_tiny):
    for number, (state, metrics) in enumerate(run_tiny().history, start=1):
        assert state.step == number
        assert set(metrics) == {
            "loss",
            "generation",
            "alignment",
            "student_feature_norm",
            "teacher_feature_norm",
            "grad_norm",
        }
        assert all(v.shape == () and v.dtype == jnp.float32 for v in metrics.values())
        loss = metrics["generation"] + 0.2 * metrics["alignment"]
        np.testing.assert_allclose(metrics["loss"], loss, rtol=ROUNDING)
        assert all(0 < float(v) < np.inf for v in metrics.values())


def test_a_step_that_is_not_finite_can_be_skipped(live_state):
    """Alone its number changes; steps that are finite are those of a run without the option."""
    optimizer, skipping = make_optimizer(OPTIMIZER), StepConfig(skip_nonfinite=True)
    step = jax.jit(make_train_step(make_objective(), optimizer, skipping))
    plain = jax.jit(make_train_step(make_objective(), optimizer, StepConfig()))
    for std in (np.nan, np.inf, 3e38):
        skipped, metrics = step(live_state, make_batch(std=std))
        assert skipped.step == live_state.step + 1
        jax.tree.map(np.testing.assert_array_equal, skipped[1:], live_state[1:])
        assert metrics["skipped"] == 1 and not np.isfinite(metrics["loss"])
        assert nonfinite_leaves(plain(live_state, make_batch(std=std))[0])
    made, metrics = step(skipped, make_batch())
    expected, _ = plain(skipped, make_batch())
    assert metrics["skipped"] == 0 and not nonfinite_leaves(made)
    for ours, theirs in ((made.params, expected.params), (made.ema, expected.ema)):
        assert worst_error(flatten(ours), flatten(theirs))[0] < ROUNDING


@pytest.mark.parametrize("name", ["params", "ema", "opt_state"])
def test_any_array_that_is_not_finite_is_named(live_state, name):
    assert nonfinite_leaves(live_state) == []
    leaves, structure = jax.tree.flatten(getattr(live_state, name))
    leaves[-1] = leaves[-1].at[(-1,) * leaves[-1].ndim].set(-jnp.inf)
    (wrong,) = nonfinite_leaves(live_state._replace(**{name: structure.unflatten(leaves)}))
    assert wrong.startswith(f"{name}/")


def test_first_state():
    optimizer = make_optimizer(OPTIMIZER)
    init = jax.jit(partial(init_state, make_objective(), optimizer))
    state, other = (init(seed=seed) for seed in (3, 4))
    jax.tree.map(np.testing.assert_array_equal, state.ema, state.params)
    assert state.step.dtype == jnp.int32 and state.step == 0
    kernels = (s.params["trunk"]["patch_embed"]["kernel"] for s in (state, other))
    assert not np.array_equal(*kernels)
    assert "sra" in state.params["method"] and state.method_state == {}
    plain = jax.eval_shape(partial(init_state, make_objective(method=None), optimizer), seed=3)
    assert plain.params["method"] == plain.ema["method"] == {}


def test_ema_of_the_first_state_is_no_alias():
    """Without jit around it, too: an alias cannot be donated twice."""
    first = init_state(make_objective(), make_optimizer(OPTIMIZER), seed=0)
    for param, ema in zip(jax.tree.leaves(first.params), jax.tree.leaves(first.ema), strict=True):
        assert param.unsafe_buffer_pointer() != ema.unsafe_buffer_pointer()
    jax.jit(lambda state: state, donate_argnums=0)(first)  # raises for an alias
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(first))


def test_the_whole_state_is_donated(run_tiny):
    """And every buffer is used: JAX would have warned of one that is not."""
    run = run_tiny()
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(run.first))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(run.last))


@pytest.mark.parametrize("microbatches", [1, 2, 4])
def test_gradient_and_what_is_averaged_with_it(microbatches):
    """Neighbours of a group stay together, in their order; statistics are averaged."""
    params, example = jnp.float32(2), {"a": jnp.arange(8), "b": jnp.arange(16.0).reshape(8, 2)}

    def loss(params, example):
        a = example["a"]
        assert len(a) == 8 // microbatches
        value = params * a.mean() + example["b"].mean()
        seen = {
            "examples": jax.nn.one_hot(a, 8).sum(0),
            "steps": a[1::2] - a[::2],
            "odd": a[::2] % 2,
        }
        return value, ({"loss": value}, seen)

    gradient, (metrics, seen) = accumulate_gradients(loss, params, example, microbatches, 2)
    np.testing.assert_allclose(gradient, 3.5)
    np.testing.assert_allclose(metrics["loss"], 2 * 3.5 + 7.5)
    np.testing.assert_allclose(seen["examples"] * microbatches, np.ones(8))
    assert (seen["steps"] == 1).all() and not seen["odd"].any()


# Bad input.


@pytest.mark.parametrize(
    ("config", "options", "word"),
    [
        (StepConfig, {"label_dropout": 1.1}, "label_dropout is 1.1"),
        (StepConfig, {"label_dropout": -0.1}, "label_dropout is -0.1"),
        (StepConfig, {"ema_decay": 1.0}, "ema_decay is 1.0"),
        (StepConfig, {"ema_decay": float("nan")}, "ema_decay is nan"),
        (StepConfig, {"microbatches": 0}, "microbatches is 0"),
        (OptimizerConfig, {"learning_rate": 0.0}, "learning_rate is 0.0"),
        (OptimizerConfig, {"learning_rate": float("nan")}, "learning_rate is nan"),
        (OptimizerConfig, {"b1": 1.0}, "b1 is 1.0"),
        (OptimizerConfig, {"b2": -0.5}, "b2 is -0.5"),
        (OptimizerConfig, {"eps": 0.0}, "eps is 0.0"),
        (OptimizerConfig, {"clip_norm": -1.0}, "clip_norm is -1.0"),
        (OptimizerConfig, {"weight_decay": -0.1}, "weight_decay is -0.1"),
        (OptimizerConfig, {"weight_decay": float("nan")}, "weight_decay is nan"),
    ],
    ids=str,
)
def test_bad_config_is_refused_in_one_line(config, options, word):
    with pytest.raises(InputError) as error:
        config(**options)
    assert word in str(error.value) and "\n" not in str(error.value)
