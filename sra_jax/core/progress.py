"""Logs the progress of long work, and formats durations."""

import logging
import time

PROGRESS_SECONDS = 5.0

_log = logging.getLogger(__name__)


class Progress:
    """Logs every five seconds how many of `total` units are done, the speed, and the time left.

    The clock starts after the first units, because compilation for them is not typical.
    """

    def __init__(self, what: str, total: int, unit: str):
        self._what, self._total, self._unit = what, total, unit
        self._began: tuple[float, float] | None = None  # time, and units done by then
        self._done = self._logged = 0.0

    def add(self, done: float) -> None:
        """Counts `done` more units."""
        self.reached(self._done + done)

    def reached(self, done: float) -> None:
        """Sets the units that are done in all."""
        self._done = done
        now = time.perf_counter()
        if self._began is None:
            self._began, self._logged = (now, done), now
        elif now - self._logged > PROGRESS_SECONDS:
            self._logged = now
            began, first = self._began
            rate = (done - first) / (now - began)
            left = format_seconds((self._total - done) / rate) if rate > 0 else "?"
            counts = f"{done:,.0f}/{self._total:,} {self._unit}"
            _log.info("%s", f"{self._what}: {counts}  {rate:,.1f} {self._unit}/s  {left} left")


def format_seconds(seconds: float) -> str:
    """Formats a duration: "45s", "3m05s", "2h07m", "3d04h"."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days}d{hour:02}h"
    if hours:
        return f"{hours}h{minute:02}m"
    return f"{minutes}m{second:02}s" if minutes else f"{second}s"
