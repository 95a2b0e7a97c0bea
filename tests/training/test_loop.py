"""What the loop saves, and what it refuses to."""

import itertools
import os
import signal
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from sra_jax.checkpoints.store import CheckpointStore
from sra_jax.core.errors import RunError
from sra_jax.training.loop import Hooks, run_steps
from sra_jax.training.preemption import StopSignals
from sra_jax.training.reporter import Reporter, StepCost
from sra_jax.training.state import TrainState


@jax.jit
def overflowing_step(state, batch):
    """Loss and gradient are always finite; the EMA alone overflows, in the fourth step."""
    return state._replace(step=state.step + 1, ema=state.ema * 1e10), {"loss": jnp.float32(1)}


def run_twenty(step, store, monitor, stop):
    """Of twenty steps every second is saved."""
    return run_steps(
        step,
        TrainState(jnp.int32(0), jnp.ones(3), jnp.ones(3), jnp.zeros(3), {"own": jnp.zeros(1)}),
        itertools.repeat(None),
        range(20),
        2,
        Hooks(
            store,
            lambda step, state: store.save(step, state._asdict(), {}),
            monitor,
            Reporter(None, 0, 20, 100, StepCost(1, 1, 1, None)),
            stop,
        ),
    )


def test_a_state_that_is_not_finite_is_not_saved(tmp_path):
    store = CheckpointStore(tmp_path)
    with pytest.raises(RunError) as failure:
        run_twenty(overflowing_step, store, lambda step, state: 0.0, StopSignals())
    assert "ema is not finite after step 4; the last good checkpoint is step 2" in str(
        failure.value
    )
    store.close()
    assert store.steps() == [2]


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_that_comes_after_a_step_leaves_that_step_the_last(tmp_path, number, code):
    def draw(step, state):
        if step == 5:
            os.kill(os.getpid(), number)
        return 0.0

    store = CheckpointStore(tmp_path)
    with StopSignals() as stop:
        step = jax.jit(lambda state, batch: (state, {"loss": jnp.float32(1)}))
        assert run_twenty(step, store, draw, stop) == 5
    store.close()
    assert (store.steps(), stop.exit_code) == ([2, 4, 5], code)


@pytest.mark.parametrize("done", [True, False])
def test_reading_is_waiting_only_for_devices_that_have_nothing_left_to_do(tmp_path, done):
    waits = []
    reporter = SimpleNamespace(
        add=lambda step, metrics, waited: waits.append(waited),
        leave_out=lambda seconds: None,
        flush=lambda: None,
    )
    store = CheckpointStore(tmp_path)
    run_steps(
        lambda state, batch: (state, {"loss": SimpleNamespace(is_ready=lambda: done)}),
        TrainState(jnp.int32(0), jnp.ones(3), jnp.ones(3), jnp.zeros(3), {"own": jnp.zeros(1)}),
        itertools.repeat(None),
        range(3),
        4,
        Hooks(store, lambda step, state: None, lambda step, state: 0.0, reporter, StopSignals()),
    )
    store.close()
    # Before the first step they have nothing to do at all.
    assert [waited > 0 for waited in waits] == [True, done, done]
