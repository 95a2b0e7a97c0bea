"""Turns SIGTERM and Ctrl-C into a request to save at the end of the current step and stop.

Several processes must stop at the same step. JAX's preemption service receives the SIGTERM of any
of them, and chooses the step for all.
"""

import logging
import os
import signal
from types import FrameType

import jax
from jax.experimental import multihost_utils

from sra_jax.core.errors import INTERRUPTED, PREEMPTED

_log = logging.getLogger(__name__)


class StopSignals:
    """Records SIGTERM and SIGINT while entered; a second SIGINT goes to the previous handler."""

    def __init__(self):
        self._is_distributed = jax.process_count() > 1
        self._received: signal.Signals | None = None
        self._agreed = False
        self._previous = {}

    def __enter__(self) -> "StopSignals":
        # With several processes the preemption service handles SIGTERM, so it keeps its handler.
        numbers = (signal.SIGINT,) if self._is_distributed else (signal.SIGINT, signal.SIGTERM)
        for number in numbers:
            self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *error) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @property
    def stopped(self) -> bool:
        """Whether to save and stop: a signal came, or all processes have agreed on this step."""
        return self._agreed if self._is_distributed else self._received is not None

    def after(self, step: int) -> bool:
        """Returns whether to save and stop after `step`; must be called after every step."""
        if self._is_distributed:
            self._agreed = multihost_utils.reached_preemption_sync_point(step)
        return self.stopped

    @property
    def exit_code(self) -> int:
        """The exit code of the process: 0 if it was not stopped."""
        if not self.stopped:
            return 0
        return INTERRUPTED if self._received == signal.SIGINT else PREEMPTED

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._received == signal.SIGINT == number:
            self._previous[number](number, frame)
        again = "; a second Ctrl-C stops at once" if number == signal.SIGINT else ""
        self._received = signal.Signals(number)
        _log.warning("%s: saving after this step%s", self._received.name, again)
        if self._is_distributed:
            os.kill(os.getpid(), signal.SIGTERM)  # the preemption service tells the others
