"""The training loop: takes batches, makes steps, reports and saves. It never waits for devices."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import jax

from sra_jax.checkpoints.store import CheckpointStore
from sra_jax.core.errors import RunError
from sra_jax.training.preemption import StopSignals
from sra_jax.training.reporter import NonFiniteError, Reporter
from sra_jax.training.state import TrainState, nonfinite_leaves
from sra_jax.training.step import Batch, Metrics


@dataclass(frozen=True)
class Hooks:
    """What the loop calls between steps.

    store: the checkpoints that `save` writes.
    save: starts to save the state after a step.
    monitor: runs after every step (grids, FID), and returns the seconds it took, which do not count
      as training time.
    reporter: collects the metrics of every step.
    stop: says after every step whether to save and stop.
    """

    store: CheckpointStore
    save: Callable[[int, TrainState], None]
    monitor: Callable[[int, TrainState], float]
    reporter: Reporter
    stop: StopSignals


def run_steps(
    train_step: Callable[[TrainState, Batch], tuple[TrainState, Metrics]],
    state: TrainState,
    batches: Iterator[Batch],
    steps: range,
    checkpoint_every: int,
    hooks: Hooks,
) -> int:
    """Trains, and saves at multiples of `checkpoint_every`, when asked to stop, and at the end.

    Args:
      train_step: the compiled step.
      state: the state after `steps.start` steps; its arrays are donated.
      batches: the batches of the steps to make, on the devices.
      steps: from the steps made so far to the total.
      checkpoint_every: steps between checkpoints.
      hooks: what is called between steps.

    Returns:
      The number of steps made in all.

    Raises:
      RunError: a metric, or a state to save, is not finite. Earlier checkpoints are untouched.
    """
    reporter, stop = hooks.reporter, hooks.stop

    def save(step: int, state: TrainState) -> None:
        reporter.flush()  # looks at the metrics of every step before its state is saved
        _check_finite(step, state)
        hooks.save(step, state)

    done, metrics = steps.start, {}
    try:
        for done in range(steps.start + 1, steps.stop + 1):
            asked_at = time.perf_counter()
            batch = next(batches)
            # Only devices that have finished the last step have waited for this batch.
            waited = time.perf_counter() - asked_at if _are_done(metrics) else 0.0
            state, metrics = dispatch(train_step, state, batch)
            reporter.add(done, metrics, waited)

            stopping = stop.after(done)
            if stopping or done % checkpoint_every == 0 or done == steps.stop:
                save(done, state)
            if stopping:
                break

            reporter.leave_out(hooks.monitor(done, state))
            # A signal came during `monitor`: save this step, because there is no next one.
            if stop.stopped:
                save(done, state)
                break
    except NonFiniteError as error:
        hooks.store.wait()
        saved = hooks.store.latest_step()
        kept = f"the last good checkpoint is step {saved}" if saved else "nothing was saved yet"
        raise RunError(
            f"training stopped: {error}; {kept}; run the same command with "
            "--config.train.skip_nonfinite=True to go on without such steps, or lower "
            "optimizer.learning_rate in a new workdir"
        ) from None
    hooks.store.wait()
    return done


def dispatch(
    train_step: Callable[[TrainState, Batch], tuple[TrainState, Metrics]],
    state: TrainState,
    batch: Batch,
) -> tuple[TrainState, Metrics]:
    """Starts a step; an array that is not on its devices yet is an error, not copied."""
    with jax.transfer_guard("disallow"):
        return train_step(state, batch)


def _are_done(metrics: Metrics) -> bool:
    """Returns whether the step of `metrics` has ended, so that the devices have nothing to do."""
    return all(metric.is_ready() for metric in metrics.values())


def _check_finite(step: int, state: TrainState) -> None:
    """Raises NonFiniteError unless all of `state` is finite."""
    if wrong := nonfinite_leaves(state):
        more = f" (and {len(wrong) - 1} more arrays)" if len(wrong) > 1 else ""
        raise NonFiniteError(f"{wrong[0]}{more} is not finite after step {step}")
