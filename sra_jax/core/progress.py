"""How far something is, told now and then, and how long that is."""

import logging
import time

PROGRESS_SECONDS = 5.0

_log = logging.getLogger(__name__)


class Progress:
    """Says every five seconds how many of `total` units are done, how fast, and what is left.

    The clock starts with the first units: what is compiled for them would spoil the forecast.
    """

    def __init__(self, what: str, total: int, unit: str):
        self._what, self._total, self._unit = what, total, unit
        self._began: tuple[float, float] | None = None  # when, and what was done by then
        self._done = self._told = 0.0

    def add(self, done: float) -> None:
        """Takes note that so many, or so much, more is done."""
        self.reached(self._done + done)

    def reached(self, done: float) -> None:
        """Takes note that so many, or so much, is done in all."""
        self._done = done
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
