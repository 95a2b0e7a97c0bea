"""The objective: one student pass for all methods, their weights, parameters, state and rules."""

from dataclasses import dataclass, replace
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import LOSSES, relative_error
from golden_kinds.shared import make_example
from jax.sharding import PartitionSpec
from tiny import METHOD, TINY, make_batch

from sra_jax.conditioning import ClassLabels
from sra_jax.core.shapes import FieldSpec
from sra_jax.methods import SRA, Example, Method, Terms
from sra_jax.methods.schedule import WeightSchedule
from sra_jax.models import DiT, Output, Pass
from sra_jax.processes import Interpolant
from sra_jax.training.objective import Objective
from sra_jax.training.optimizer import OptimizerConfig, make_optimizer
from sra_jax.training.state import init_state
from sra_jax.training.step import StepConfig, make_train_step


class FakeTrunk:
    """Notes its calls; predicts what it is given; the feature of block k is k times its parameter
    throughout."""

    def __init__(self):
        self.calls = []

    def apply(self, params, x_t, t, condition, how):
        self.calls.append({"params": params, "x": x_t, "t": t, "labels": condition, "how": how})
        feature = jnp.ones((len(x_t), 3, 2)) * params
        return Output(x_t, {k: k * feature for k in how.taps})


def params_of(trunk, **method):
    return {"trunk": jnp.float32(trunk), "method": method}


@dataclass(frozen=True, kw_only=True)
class Pull(Method):
    """Pulls the feature of a block toward a record's field, through a factor of its own, and counts
    the steps."""

    name: ClassVar[str] = "pull"
    block: int = 1
    loss_name: ClassVar[str] = "pull"
    rules: ClassVar[tuple] = ((r"pull/factor", PartitionSpec("fsdp")),)

    def fields(self, sizes):
        return {"goal": FieldSpec((), "float32")}

    def taps(self):
        return (self.block,)

    def init(self, key, sizes):
        return {"factor": jax.random.normal(key, (8,))}

    def init_state(self, sizes):
        return jnp.zeros(())

    def terms(self, nets, process, example, out):
        pulled = out.features[self.block].mean((1, 2)) * nets.params["factor"].sum()
        loss = jnp.abs(pulled - example.fields["goal"])
        return Terms(
            {self.loss_name: loss}, {"state": nets.state}, {"goal": example.fields["goal"].mean()}
        )

    def next_state(self, state, statistics):
        return state + statistics["goal"]


@dataclass(frozen=True, kw_only=True)
class Other(Pull):
    """Another method, which keeps three examples together and reports a name of its own."""

    name: ClassVar[str] = "other"
    loss_name: ClassVar[str] = "otherwise"
    rules: ClassVar[tuple] = ()

    group: ClassVar[int] = 3

    def fields(self, sizes):
        return {}

    def init(self, key, sizes):
        return {}

    def init_state(self, sizes):
        return ()

    def student_pass(self, how, draws):
        return replace(how, taps=(*how.taps, 9))

    def terms(self, nets, process, example, out):
        assert nets.params == {} and nets.state == ()
        return Terms({self.loss_name: out.features[9].mean((1, 2))})


@pytest.fixture
def example():
    rng = np.random.default_rng(2)
    x, noise = (jnp.asarray(rng.normal(size=(2, 4, 4, 1)), jnp.float32) for _ in range(2))
    t, t_teacher = jnp.array([0.5, 0.9]), jnp.array([0.4, 0.9])
    return make_example(x, jnp.array([3, 7]), noise, t, t_teacher)


def test_student_and_teacher_see_the_same_example_at_their_own_times(example):
    trunk, labels = FakeTrunk(), example.condition["labels"]
    sra = SRA(student_block=2, teacher_block=5, distance="l1", head=False)
    objective = Objective(trunk, Interpolant(), ClassLabels(10), (sra,))
    loss, (metrics, _) = objective(params_of(1.0), params_of(10.0), {}, example, 0)
    seen, taught = trunk.calls
    column = (slice(None), None, None, None)
    for call, t in ((seen, example.t), (taught, example.draws["sra"]["t_teacher"])):
        expected = (1 - t)[column] * example.x + t[column] * example.noise
        np.testing.assert_allclose(call["x"], expected, rtol=1e-6)
        np.testing.assert_array_equal(call["t"], t)
        assert call["labels"]["labels"] is labels
    assert seen["how"] == Pass(taps=(2,)) and taught["how"] == Pass(taps=(5,), stop_at=5)
    assert (seen["params"], taught["params"]) == (1, 10)
    np.testing.assert_allclose(metrics["alignment"], 48)  # |1 * 2 - 10 * 5|
    np.testing.assert_allclose(loss, metrics["generation"] + 0.2 * 48, rtol=1e-6)


def test_without_a_method_no_teacher_runs():
    x, t, trunk = jnp.ones((2, 4, 4, 1)), jnp.array([0.2, 0.6]), FakeTrunk()
    example = Example(x, {"labels": jnp.zeros(2, int)}, -x, t, {}, {})
    plain = Objective(trunk, Interpolant(), ClassLabels(10))
    loss, (metrics, statistics) = plain(params_of(1.0), params_of(2.0), {}, example, 0)
    # The trunk returns x_t = 1 - 2 t, the target is noise - x = -2.
    np.testing.assert_allclose(loss, np.mean((1 - 2 * t + 2) ** 2), rtol=1e-6)
    assert metrics.keys() == {"loss", "generation"} and statistics == {}
    (call,) = trunk.calls
    assert call["params"] == 1 and call["how"] == Pass()


def test_the_generation_loss_of_a_plain_objective_is_golden(sit, sit_model):
    x, noise, t = sit.images("loss/latents"), sit.images("loss/noise"), sit.jax("loss/u_time")
    labels = {"labels": sit.jax("loss/labels", jnp.int32)}
    objective = Objective(sit_model, Interpolant(), sit.config.conditioning)
    params = sit.params("student")
    loss, _ = objective(params, params, {}, Example(x, labels, noise, t, {}, {}), 0)
    expected = sit["loss/linear/uniform/generation"].mean()
    assert relative_error(loss, expected) < LOSSES


def test_methods_share_one_pass_and_weigh_their_own_losses(example):
    """Taps are merged, each method may change the pass, and each has its weight at each step."""
    trunk = FakeTrunk()
    falling = WeightSchedule(0.5, steps_per_epoch=1, constant_epochs=0, decade_epochs=1)
    methods = Pull(block=4, weight=falling), Other(block=2)
    objective = Objective(trunk, Interpolant(), ClassLabels(10), methods)
    goals = {"goal": jnp.array([1.0, 3.0])}
    example = example._replace(fields=goals, draws={"pull": {}, "other": {}})
    params = params_of(1.0, pull={"factor": jnp.ones(8)})
    state = {"pull": jnp.float32(7)}
    for step, weight in ((0, 0.5), (1, 0.05)):
        loss, (metrics, statistics) = objective(params, params, state, example, jnp.int32(step))
        np.testing.assert_allclose(metrics["pull"], 30)  # |4 * 8 - 2|
        np.testing.assert_allclose(metrics["otherwise"], 9)
        total = metrics["generation"] + weight * 30 + 9
        np.testing.assert_allclose([loss, metrics["loss"]], total, rtol=1e-6)
        assert metrics.keys() == {"loss", "generation", "pull", "otherwise", "state"}
        assert metrics["state"] == 7
        assert statistics == {"pull": {"goal": 2.0}, "other": ()}
    assert [call["how"].taps for call in trunk.calls] == [(2, 4, 9)] * 2


def test_a_name_that_is_reported_twice_is_an_error(example):
    @dataclass(frozen=True, kw_only=True)
    class Twice(Other):
        name: ClassVar[str] = "twice"

    objective = Objective(FakeTrunk(), Interpolant(), ClassLabels(10), (Other(), Twice()))
    example = example._replace(draws={"other": {}, "twice": {}})
    with pytest.raises(ValueError, match=r"twice reports .*otherwise"):
        objective(params_of(1.0), params_of(1.0), {}, example, 0)


def test_parameters_fields_groups_and_rules_are_those_of_the_methods():
    methods = METHOD, Pull(), Other(), replace(METHOD, teacher_fraction=0.5)
    objective = Objective(DiT(TINY), Interpolant(), TINY.conditioning, methods[:3])
    assert objective.fields() == {
        "labels": FieldSpec((), "int32"),
        "goal": FieldSpec((), "float32"),
    }
    assert objective.rules == (*SRA.rules, *Pull.rules, *DiT.rules)
    assert objective.group == 3
    assert replace(objective, methods=methods[2:]).group == 6
    assert replace(objective, methods=()).group == 1
    params = jax.jit(objective.init, static_argnums=0)(3)
    assert params.keys() == {"trunk", "method"}
    assert params["method"].keys() == {"sra", "pull"}  # `other` has none


def test_a_methods_first_parameters_do_not_depend_on_the_others():
    plain, alone, both = (
        jax.jit(Objective(DiT(TINY), Interpolant(), TINY.conditioning, methods).init)
        for methods in ((), (METHOD,), (Pull(), METHOD))
    )
    plain, alone, both = plain(3), alone(3), both(3)
    for params in (alone, both):
        jax.tree.map(np.testing.assert_array_equal, params["trunk"], plain["trunk"])
    sra = alone["method"]["sra"]
    jax.tree.map(np.testing.assert_array_equal, both["method"]["sra"], sra)
    assert plain["method"] == {}


@pytest.mark.parametrize("microbatches", [1, 2])
def test_a_step_trains_a_methods_parameters_and_updates_its_state(microbatches):
    """And reads its record fields."""
    objective = Objective(DiT(TINY), Interpolant(), TINY.conditioning, (METHOD, Pull()))
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-2))
    state = jax.jit(lambda: init_state(objective, optimizer, 0))()
    assert state.method_state.keys() == {"pull"}  # SRA keeps none
    step = jax.jit(make_train_step(objective, optimizer, StepConfig(microbatches=microbatches)))
    batch = make_batch() | {"goal": np.arange(8, dtype=np.float32)}
    new, metrics = step(state, batch)
    before, after = (s.params["method"]["pull"]["factor"] for s in (state, new))
    assert (before != after).all()
    ema = new.ema["method"]["pull"]["factor"]
    np.testing.assert_allclose(ema, 0.9999 * before + 0.0001 * after, rtol=1e-6)
    assert metrics["state"] == 0 and new.method_state == {"pull": 3.5}
    assert step(new, batch)[1]["state"] == 3.5


def test_a_skipped_step_leaves_the_methods_state():
    objective = Objective(DiT(TINY), Interpolant(), TINY.conditioning, (Pull(),))
    optimizer = make_optimizer(OptimizerConfig())
    state = jax.jit(lambda: init_state(objective, optimizer, 0))()
    step = jax.jit(make_train_step(objective, optimizer, StepConfig(skip_nonfinite=True)))
    goals = {"goal": np.ones(8, np.float32)}
    skipped, metrics = step(state, make_batch(std=np.nan) | goals)
    assert metrics["skipped"] == 1 and skipped.method_state == {"pull": 0}
    assert step(state, make_batch() | goals)[0].method_state == {"pull": 1}
