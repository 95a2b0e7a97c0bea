"""SIGTERM and Ctrl-C ask a run to stop; it saves at the end of its step, and loses none."""

import signal
from types import FrameType

PREEMPTED = 75  # exit code after SIGTERM: saved, run the same command again (EX_TEMPFAIL)
INTERRUPTED = 130  # exit code after Ctrl-C: saved too


class StopSignals:
    """Remembers the first SIGTERM or SIGINT while entered; a second SIGINT interrupts at once."""

    def __init__(self):
        self._received: signal.Signals | None = None
        self._previous = {}

    def __enter__(self) -> "StopSignals":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *error) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @property
    def requested(self) -> bool:
        return self._received is not None

    @property
    def exit_code(self) -> int:
        """What the process should exit with: 0 if nobody asked it to stop."""
        codes = {None: 0, signal.SIGTERM: PREEMPTED, signal.SIGINT: INTERRUPTED}
        return codes[self._received]

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._received == signal.SIGINT == number:
            raise KeyboardInterrupt
        self._received = signal.Signals(number)
