"""How far something is, told now and then."""

import logging
import time

from sra_jax.training.reporting import format_seconds

PROGRESS_SECONDS = 5.0

_log = logging.getLogger(__name__)


class Progress:
    """Says every five seconds how many of `total` units are done, how fast, and what is left."""

    def __init__(self, what: str, total: int, unit: str):
        self._what, self._total, self._unit = what, total, unit
        self._began = self._told = time.perf_counter()

    def reached(self, done: float) -> None:
        """Takes note that so many, or so much, is done."""
        now = time.perf_counter()
        if now - self._told > PROGRESS_SECONDS:
            self._told = now
            rate = done / (now - self._began)
            left = format_seconds((self._total - done) / rate) if rate else "?"
            counts = f"{done:,.0f}/{self._total:,} {self._unit}"
            _log.info("%s", f"{self._what}: {counts}  {rate:,.1f} {self._unit}/s  {left} left")
