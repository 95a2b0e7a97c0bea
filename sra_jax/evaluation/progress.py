"""How far something is, told now and then."""

import logging
import time

from sra_jax.training.reporting import format_seconds

PROGRESS_SECONDS = 5.0

_log = logging.getLogger(__name__)


class Progress:
    """Says every five seconds how many of `total` units are done, how fast, and what is left.

    The clock starts with the first units: what is compiled for them would spoil the forecast.
    """

    def __init__(self, what: str, total: int, unit: str):
        self._what, self._total, self._unit = what, total, unit
        self._began: tuple[float, float] | None = None  # when, and what was done by then
        self._told = 0.0

    def reached(self, done: float) -> None:
        """Takes note that so many, or so much, is done."""
        now = time.perf_counter()
        if self._began is None:
            self._began, self._told = (now, done), now
        elif now - self._told > PROGRESS_SECONDS:
            self._told = now
            began, first = self._began
            rate = (done - first) / (now - began)
            left = format_seconds((self._total - done) / rate) if rate > 0 else "?"
            counts = f"{done:,.0f}/{self._total:,} {self._unit}"
            _log.info("%s", f"{self._what}: {counts}  {rate:,.1f} {self._unit}/s  {left} left")
