"""SIGTERM and Ctrl-C ask a run to stop; it saves at the end of a step, and loses none.

Several processes must stop at the same step: there JAX's preemption service hears the SIGTERM of
any of them, and names the step for all.
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
    """Heeds SIGTERM and SIGINT while entered; a second SIGINT does what it did before."""

    def __init__(self):
        self._together = jax.process_count() > 1
        self._received: signal.Signals | None = None
        self._agreed = False
        self._previous = {}

    def __enter__(self) -> "StopSignals":
        # With several processes SIGTERM is the preemption service's, which must keep its handler.
        numbers = (signal.SIGINT,) if self._together else (signal.SIGINT, signal.SIGTERM)
        for number in numbers:
            self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *error) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @property
    def stopped(self) -> bool:
        """Whether to save and stop: once a signal came, or once all processes agree on the step."""
        return self._agreed if self._together else self._received is not None

    def after(self, step: int) -> bool:
        """Whether to save and stop now that `step` is done; to be asked after every step."""
        if self._together:
            self._agreed = multihost_utils.reached_preemption_sync_point(step)
        return self.stopped

    @property
    def exit_code(self) -> int:
        """What the process should exit with: 0 if it was not stopped."""
        if not self.stopped:
            return 0
        return INTERRUPTED if self._received == signal.SIGINT else PREEMPTED

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._received == signal.SIGINT == number:
            self._previous[number](number, frame)
        again = "; a second Ctrl-C stops at once" if number == signal.SIGINT else ""
        self._received = signal.Signals(number)
        _log.warning("%s: saving after this step%s", self._received.name, again)
        if self._together:
            os.kill(os.getpid(), signal.SIGTERM)  # to tell the others
