"""Ends a process at once, with one line on stderr and its exit code.

  reason            where                     handled by                      exit code
  SIGTERM, Ctrl-C   outside the train loop    `_stop`, also from a thread     75, 130
  SIGTERM, Ctrl-C   in the train loop         `StopSignals`, after a save     75, 130
  a second Ctrl-C   in the train loop         `_stop`, also from a thread     130
  an error          anywhere                  `fail`                          2 or 1
  a lost process    where JAX notices it      `fail`, or the abort's handler  1

By default a failing process of several hangs in JAX's shutdown barrier, and the survivors of a lost
process are aborted from a C++ thread after a page of log. A normal exit also waits for threads, and
JAX crashes if it is shut down while its threads compute. So this module ends with `os._exit`.
"""

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from types import FrameType
from typing import NoReturn

from sra_jax.core.errors import BAD_INPUT, FAILED, INTERRUPTED, LOST, PREEMPTED

# One of several processes waits before it ends: the others most likely refuse the same input, and
# need time to say so; and if one was stopped by a SIGTERM, the signal may still be on its way here,
# which makes this a preemption and not a failure.
GRACE_SECONDS = 5.0
_STOPPED = {signal.SIGTERM: ("SIGTERM", PREEMPTED), signal.SIGINT: ("Ctrl-C", INTERRUPTED)}

_speaker = ""  # begins the lines of this process if it is one of several
_stopping = threading.Lock()  # held by the thread that ends this process because of a signal
_failing = threading.Lock()  # held by the thread that ends it for another reason
_code: int | None = None  # the exit code in that case
_on_abort = None  # the handler of SIGABRT: C holds only its address


def speak_as(name: str) -> None:
    """Makes this one process of several: `name` begins its lines from now on."""
    global _speaker
    _speaker = name
    say_on_abort(f"{name}error: {LOST}")


def speaker() -> str:
    """Returns what begins the lines of this process; "" if it is alone."""
    return _speaker


def install_signal_handlers() -> None:
    """Makes SIGTERM and Ctrl-C end this process at once, with one line.

    The train loop replaces the handlers by its own, `StopSignals`, which save first.

    The handlers do not raise, because an exception would be lost in a callback that Python happens
    to run. A thread receives the signals too: the main thread runs no handlers while it is in C,
    compiling or waiting for other processes. (A child by `os.fork` would share the pipe; nothing
    here makes one.)
    """
    receiver, sender = os.pipe()
    os.set_blocking(sender, False)
    for number in _STOPPED:
        signal.signal(number, _stop)
    signal.set_wakeup_fd(sender)  # Python writes the number of every signal to the pipe
    threading.Thread(target=_listen, args=(receiver,), daemon=True).start()


def _listen(receiver: int) -> None:
    """Calls `_stop` for every signal, unless the train loop handles it."""
    interrupts = 0
    while True:
        (number,) = os.read(receiver, 1)
        interrupts += number == signal.SIGINT
        # The train loop's handler waits for the end of the step, but not after a second Ctrl-C.
        if signal.getsignal(number) is _stop or (number == signal.SIGINT and interrupts > 1):
            _stop(number, None)


def _stop(number: int, frame: FrameType | None) -> None:
    if _code == BAD_INPUT or not _stopping.acquire(blocking=False):
        return  # bad input keeps its exit code, although the end of this process stops the others
    name, code = _STOPPED[number]
    _say(f"{_speaker}error: stopped by {name}; run the same command again\n")
    os._exit(code)


def fail(error: Exception | str, code: int) -> NoReturn:
    """Ends this process with the error on one line and `code`.

    It waits neither for other processes nor for threads: Orbax leaves some behind that wait for
    minutes if a save could not begin.
    """
    sys.stdout.flush(), sys.stderr.flush()
    _end(f"{_speaker}error: {' '.join(str(error).split())}\n", code)


def leave(code: int) -> NoReturn:
    """Ends this process with `code`, without a line."""
    if code or _failing.locked():
        sys.stdout.flush(), sys.stderr.flush()
        _end("", code)
    sys.exit(0)


def say_on_abort(line: str | None) -> None:
    """Makes an abort end this process with `line` and code 1; None restores the default.

    JAX aborts if processes do not meet or are lost. A handler of Python would wait for the main
    thread, which has stopped by then, so this one is installed in C.
    """

    @ctypes.CFUNCTYPE(None, ctypes.c_int)
    def end(number: int) -> None:
        _end(f"{line}\n", FAILED)

    global _on_abort
    _on_abort = None if line is None else end
    ctypes.CDLL(None).signal(int(signal.SIGABRT), _on_abort)


def _end(line: str, code: int) -> NoReturn:
    """Exits after GRACE_SECONDS, unless another thread is already exiting."""
    global _code
    if not _failing.acquire(blocking=False):
        threading.Event().wait()
    _code = code
    _say(line)
    time.sleep(GRACE_SECONDS if _speaker else 0)
    os._exit(code)


def _say(line: str) -> None:
    """Writes `line` to stderr in one call, so that lines of JAX's threads do not split it.

    `print` is not safe here, because the handler may have interrupted a `print`.
    """
    with contextlib.suppress(OSError):
        os.write(2, line.encode())
