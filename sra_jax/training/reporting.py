"""What a run says while it runs: a log line and TensorBoard events, without making devices wait."""

import logging
import math
import time
from collections import deque
from typing import NamedTuple

import jax
import numpy as np

from sra_jax.training.step import Metrics

_log = logging.getLogger(__name__)

# Steps that may be under way on the devices: enough that they never wait for the host, few enough
# that their inputs do not pile up in memory.
MAX_STEPS_AHEAD = 2


class NonFiniteError(Exception):
    """A metric of `step` was NaN or infinite."""

    def __init__(self, step: int, name: str, value: float):
        super().__init__(f"{name} is {value} at step {step}")
        self.step = step


class _Pending(NamedTuple):
    step: int
    metrics: Metrics


class Reporter:
    """Collects each step's metrics on the devices, and fetches and reports them every so often.

    Reports come one step late: by then the devices have the next step to work on.
    """

    def __init__(self, writer, first_step: int, last_step: int, batch_size: int, every: int):
        """`writer` is clu's interface, or None on processes that do not log."""
        self._writer = writer
        self._last_step, self._batch_size, self._every = last_step, batch_size, every
        self._pending: deque[_Pending] = deque()
        self._reported_step, self._reported_at = first_step, time.perf_counter()
        self._waited = 0.0

    def add(self, step: int, metrics: Metrics, waited: float) -> None:
        """Takes the metrics of `step` and the seconds waited for its input.

        Raises:
          NonFiniteError: a metric of an earlier step turned out not to be finite.
        """
        if self._pending and self._pending[-1].step % self._every == 0:
            self.flush()
        self._pending.append(_Pending(step, metrics))
        self._waited += waited
        if len(self._pending) > MAX_STEPS_AHEAD:
            jax.block_until_ready(self._pending[-1 - MAX_STEPS_AHEAD].metrics)

    def flush(self) -> None:
        """Reports all steps added so far; waits for them. Raises NonFiniteError."""
        if not self._pending:
            return
        fetched = [(step, jax.device_get(metrics)) for step, metrics in self._pending]
        self._pending.clear()
        for step, metrics in fetched:
            for name, value in metrics.items():
                if not math.isfinite(value):
                    raise NonFiniteError(step, name, float(value))
        last, seconds = fetched[-1][0], time.perf_counter() - self._reported_at
        rate = (last - self._reported_step) / seconds
        means = {k: float(np.mean([m[k] for _, m in fetched])) for k in fetched[-1][1]}
        extra = {
            "images_per_second": rate * self._batch_size,
            "input_wait_share": self._waited / seconds,
        }
        self._reported_step, self._reported_at, self._waited = last, time.perf_counter(), 0.0
        if self._writer is not None:
            self._writer.write_scalars(last, means | extra)
            _log.info("%s", self._line(last, means, extra, (self._last_step - last) / rate))

    def close(self) -> None:
        """Writes what is buffered."""
        if self._writer is not None:
            self._writer.close()

    def _line(self, step: int, means: dict, extra: dict, seconds_left: float) -> str:
        shown = ("loss", "generation", "alignment", "grad_norm")
        losses = "  ".join(f"{name} {means[name]:.4g}" for name in shown if name in means)
        return (
            f"step {step:,}/{self._last_step:,}  {losses}  "
            f"{extra['images_per_second']:,.0f} images/s  "
            f"input wait {extra['input_wait_share']:.1%}  {format_seconds(seconds_left)} left"
        )


def format_seconds(seconds: float) -> str:
    """A duration as people write it: "45s", "3m05s", "2h07m", "3d04h"."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days}d{hour:02}h"
    if hours:
        return f"{hours}h{minute:02}m"
    return f"{minutes}m{second:02}s" if minutes else f"{second}s"
