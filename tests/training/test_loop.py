"""What the loop saves, and what it refuses to."""

import itertools

import jax
import jax.numpy as jnp
import pytest

from sra_jax.errors import RunError
from sra_jax.training.checkpoint import CheckpointStore
from sra_jax.training.loop import run_steps
from sra_jax.training.reporting import Reporter, Workload
from sra_jax.training.signals import StopSignals
from sra_jax.training.state import TrainState


@jax.jit
def overflowing_step(state, batch):
    """Loss and gradient are always finite; the EMA alone overflows, in the fourth step."""
    return state._replace(step=state.step + 1, ema=state.ema * 1e10), {"loss": jnp.float32(1)}


def test_a_state_that_is_not_finite_is_not_saved(tmp_path):
    state = TrainState(jnp.int32(0), jnp.ones(3), jnp.ones(3), jnp.zeros(3))
    store = CheckpointStore(tmp_path)
    with pytest.raises(RunError) as failure:
        run_steps(
            overflowing_step,
            state,
            itertools.repeat(None),
            range(20),
            2,
            store,
            lambda step, state: store.save(step, state._asdict(), {}),
            lambda step, state: 0.0,
            Reporter(None, 0, 20, 100, Workload(1, 1, 1, None)),
            StopSignals(),
        )
    assert "ema is not finite after step 4; the last good checkpoint is step 2" in str(
        failure.value
    )
    store.close()
    assert store.steps() == [2]
