"""The loop: take a batch, make a step, now and then report or save. Nothing waits for devices."""

import time
from collections.abc import Callable, Iterator

import jax

from sra_jax.checkpoints.store import CheckpointStore
from sra_jax.core.errors import RunError
from sra_jax.training.preemption import StopSignals
from sra_jax.training.reporter import NonFiniteError, Reporter
from sra_jax.training.state import TrainState, nonfinite_leaves
from sra_jax.training.step import Batch, Metrics


def run_steps(
    train_step: Callable[[TrainState, Batch], tuple[TrainState, Metrics]],
    state: TrainState,
    batches: Iterator[Batch],
    steps: range,
    checkpoint_every: int,
    store: CheckpointStore,
    save: Callable[[int, TrainState], None],
    after: Callable[[int, TrainState], float],
    reporter: Reporter,
    stop: StopSignals,
) -> int:
    """Runs `steps` (those made so far, to the total), saving every so often, when asked to stop,
    and at the end. Returns the number of steps made in all.

    After each, `after` is given what has been saved if anything was, and returns the seconds that
    it took, which are not training.

    Raises:
      RunError: a metric, or what was to be saved, was not finite. What was saved before is
        untouched.
    """

    def keep(step: int, state: TrainState) -> None:
        reporter.flush()  # nothing is saved whose metrics were not looked at
        _check_finite(step, state)
        save(step, state)

    done, metrics = steps.start, {}
    try:
        for done in range(steps.start + 1, steps.stop + 1):
            asked_at = time.perf_counter()
            batch = next(batches)
            waited = time.perf_counter() - asked_at if _are_done(metrics) else 0.0
            state, metrics = dispatch(train_step, state, batch)
            reporter.add(done, metrics, waited)
            stopping = stop.after(done)
            if stopping or done % checkpoint_every == 0 or done == steps.stop:
                keep(done, state)
            if stopping:
                break
            reporter.leave_out(after(done, state))
            if stop.stopped:  # by a signal to a lone process: another step would leave this behind
                keep(done, state)
                break
    except NonFiniteError as error:
        store.wait()
        saved = store.latest_step()
        kept = f"the last good checkpoint is step {saved}" if saved else "nothing was saved yet"
        raise RunError(
            f"training stopped: {error}; {kept}; run the same command with "
            "--config.train.skip_nonfinite=True to go on without such steps, or lower "
            "optimizer.learning_rate in a new workdir"
        ) from None
    store.wait()
    return done


def dispatch(
    train_step: Callable[[TrainState, Batch], tuple[TrainState, Metrics]],
    state: TrainState,
    batch: Batch,
) -> tuple[TrainState, Metrics]:
    """Starts a step. An array that is not on its devices already is an error, not a slow step."""
    with jax.transfer_guard("disallow"):
        return train_step(state, batch)


def _are_done(metrics: Metrics) -> bool:
    """Whether the step of `metrics` has ended: if not, the devices have work, and wait for none."""
    return all(metric.is_ready() for metric in metrics.values())


def _check_finite(step: int, state: TrainState) -> None:
    """Raises NonFiniteError unless all of `state` is finite."""
    if wrong := nonfinite_leaves(state):
        more = f" (and {len(wrong) - 1} more arrays)" if len(wrong) > 1 else ""
        raise NonFiniteError(f"{wrong[0]}{more} is not finite after step {step}")
