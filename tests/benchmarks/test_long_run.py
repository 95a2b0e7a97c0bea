"""What does not grow in a short run does not in a long one (`benchmarks/long_run.py` is that)."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from long_run import watch


def test_nothing_is_compiled_or_left_open_after_the_first_checkpoints(tmp_path):
    looks = watch(tmp_path / "run", 1200, checkpoint_every=200, log_every=20)
    assert looks[-1].step == 1200
    settled = [look for look in looks if look.step >= 500]
    assert len(settled) > 30 and settled[0].compiled > 0
    assert {look.compiled for look in settled} == {settled[0].compiled}
    middle = len(settled) // 2
    # A save under way holds some files open: the least is without one.
    assert min(look.files for look in settled[middle:]) <= min(
        look.files for look in settled[:middle]
    )


def test_the_step_is_guarded_against_transfers():
    """The loop dispatches it as here; what is on the host then is refused."""
    from sra_jax.training.loop import dispatch

    step = jax.jit(lambda state, batch: (state + batch, {"loss": state.sum()}))
    state, _ = dispatch(step, jnp.zeros(3), jnp.ones(3))
    np.testing.assert_array_equal(state, np.ones(3))
    with pytest.raises(Exception, match=r"[Dd]isallowed host-to-device transfer"):
        dispatch(step, jnp.zeros(3), np.ones(3))
