"""Reports the progress of a run to the log and TensorBoard, without making devices wait."""

import logging
import os
import time
from collections import deque
from dataclasses import dataclass
from math import isfinite
from typing import NamedTuple

import jax
import numpy as np

from sra_jax.core.progress import format_seconds
from sra_jax.training.step import Metrics

# Steps that may be in progress on the devices: enough that they never wait for the host, few enough
# that their inputs do not fill the memory.
MAX_STEPS_AHEAD = 2
# This many consecutive skipped steps mean divergence, not a bad batch.
MAX_SKIPPED_IN_A_ROW = 100
SHOWN = ("loss", "generation", "alignment", "grad_norm")

_log = logging.getLogger(__name__)


class NonFiniteError(Exception):
    """A value is NaN or infinite; the message names it and the step."""


@dataclass(frozen=True)
class StepCost:
    """The work of one step, from which its speed is reported."""

    batch_size: int
    flops_per_image: int  # without rematerialisation
    devices: int
    peak_flops: float | None  # operations/s of one device, if known


class _Pending(NamedTuple):
    step: int
    metrics: Metrics


def open_writer(logdir: str | os.PathLike):
    """A writer of TensorBoard events (clu's interface), or None on processes that do not log."""
    if jax.process_index() > 0:
        return None
    from sra_jax.training.tensorboard import make_writer  # TensorBoard takes a second to import

    return make_writer(os.fspath(logdir))


class Reporter:
    """Collects the metrics of every step on the devices, and reports their means regularly.

    A report comes one step late, so that the devices are working on the next step by then.
    """

    def __init__(self, writer, first_step: int, last_step: int, every: int, cost: StepCost):
        """Starts the clock; `writer` is of `open_writer`, `every` the steps between reports."""
        self._writer, self._cost = writer, cost
        self._last_step, self._every = last_step, every
        self._pending: deque[_Pending] = deque()
        self._reported_step, self._reported_at = first_step, time.perf_counter()
        self._waited = 0.0
        self._seen = self._skipped = self._skipped_in_a_row = 0

    def add(self, step: int, metrics: Metrics, waited: float) -> None:
        """Takes the metrics of `step` and the seconds that devices `waited` for its input.

        Raises:
          NonFiniteError: a metric of an earlier step was not finite and skipping is off, or
            `MAX_SKIPPED_IN_A_ROW` steps in a row were skipped.
        """
        if self._pending and self._pending[-1].step % self._every == 0:
            self.flush()
        self._pending.append(_Pending(step, metrics))
        self._waited += waited
        if len(self._pending) > MAX_STEPS_AHEAD:
            jax.block_until_ready(self._pending[-1 - MAX_STEPS_AHEAD].metrics)

    def flush(self) -> None:
        """Waits for all steps added so far, and reports them. Raises as `add` does."""
        if not self._pending:
            return
        fetched = [(step, jax.device_get(metrics)) for step, metrics in self._pending]
        self._pending.clear()
        self._seen += len(fetched)
        made = [metrics for step, metrics in fetched if self._was_made(step, metrics)]
        if made:
            means = {k: float(np.mean([m[k] for m in made])) for k in made[0]}
            if means.pop("skipped", None) is not None:
                means["skipped_steps"] = float(self._skipped)
            self._report(fetched[-1][0], means)

    def _was_made(self, step: int, metrics: Metrics) -> bool:
        """Returns False for a skipped step, and counts it. Raises NonFiniteError."""
        wrong = [f"{k} is {float(v)} at step {step}" for k, v in metrics.items() if not isfinite(v)]
        if wrong and not metrics.get("skipped"):
            raise NonFiniteError(wrong[0])
        if not wrong:
            self._skipped_in_a_row = 0
            return True
        self._skipped += 1
        self._skipped_in_a_row += 1
        if self._skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
            raise NonFiniteError(f"{wrong[0]}, the last of {MAX_SKIPPED_IN_A_ROW} skipped in a row")
        _log.warning("skipped step %s (%s in all): %s", f"{step:,}", self._skipped, wrong[0])
        return False

    def leave_out(self, seconds: float) -> None:
        """Does not count `seconds`, which were spent on something else, as training time."""
        self._reported_at += seconds

    def close(self) -> None:
        """Logs how many steps were skipped, and writes what is buffered."""
        if self._skipped:
            _log.warning(
                "%s of %s steps were skipped, as they were not finite: see the warnings above, and "
                "lower optimizer.learning_rate in a new workdir if they are many",
                f"{self._skipped:,}",
                f"{self._seen:,}",
            )
        if self._writer is not None:
            self._writer.close()

    def _report(self, step: int, means: dict[str, float]) -> None:
        seconds = time.perf_counter() - self._reported_at
        step_seconds = seconds / (step - self._reported_step)
        speeds = self._speeds(step_seconds) | {"input_wait_share": self._waited / seconds}
        self._reported_step, self._reported_at, self._waited = step, time.perf_counter(), 0.0
        if self._writer is not None:
            self._writer.write_scalars(step, means | speeds)
            left = format_seconds((self._last_step - step) * step_seconds)
            losses = "  ".join(f"{name} {means[name]:.4g}" for name in SHOWN if name in means)
            _log.info(
                "%s", f"step {step:,}/{self._last_step:,}  {losses}  {_say(speeds)}  {left} left"
            )

    def _speeds(self, step_seconds: float) -> dict[str, float]:
        cost = self._cost
        images = cost.batch_size / step_seconds
        speeds = {
            "step_seconds": step_seconds,
            "images_per_second": images,
            "images_per_second_per_device": images / cost.devices,
            "tflops_per_second": images * cost.flops_per_image / 1e12,
        }
        if cost.peak_flops:
            peak = cost.peak_flops * cost.devices
            speeds["mfu"] = images * cost.flops_per_image / peak
        return speeds


def _say(speeds: dict[str, float]) -> str:
    images, each = speeds["images_per_second"], speeds["images_per_second_per_device"]
    parts = [f"{speeds['step_seconds'] * 1e3:,.1f} ms/step", f"{images:,.0f} images/s"]
    if images != each:
        parts.append(f"{each:,.1f} images/s/device")
    parts.append(f"{speeds['tflops_per_second']:.3g} TFLOP/s")
    if "mfu" in speeds:
        parts.append(f"MFU {speeds['mfu']:.1%}")
    parts.append(f"input wait {speeds['input_wait_share']:.1%}")
    return "  ".join(parts)
