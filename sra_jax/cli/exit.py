"""How a process ends: with one line of its own, at once, whatever its threads or others wait for.

  asked by          where                            who hears it           exit code
  SIGTERM, Ctrl-C   anywhere but in training's loop  `_stop`, a thread too  75, 130
  SIGTERM, Ctrl-C   in training's loop               `StopSignals`          75, 130, all saved
  a second Ctrl-C   in training's loop               `_stop`, a thread too  130
  an error          anywhere                         `fail`                 2, or 1
  a lost process    wherever JAX notices it          `fail`, or an abort    1

Left alone, JAX lets several processes end only together: one that fails waits in a barrier for
those that wait for it, and one whose others are gone is aborted from a thread of C++, below a page
of theirs. And it is not to be torn down while its threads compute: it crashes.
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

# What one process has refused, the others most often refuse as well: they get time to say so. And
# where one is lost, a SIGTERM to all of them may be on its way here, and tell that it was no fault.
GRACE_SECONDS = 5.0
_STOPPED = {signal.SIGTERM: ("SIGTERM", PREEMPTED), signal.SIGINT: ("Ctrl-C", INTERRUPTED)}

_speaker = ""  # what this process puts before its lines, where it is one of several
_stopping = threading.Lock()  # held by the thread that ends this process for a signal
_failing = threading.Lock()  # held by the thread that ends it for another reason
_code: int | None = None  # what it will then exit with
_on_abort = None  # the handler, of which C has but the address


def speak_as(name: str) -> None:
    """From here on this is one process of several, and `name` begins its lines."""
    global _speaker
    _speaker = name
    say_on_abort(f"{name}error: {LOST}")


def speaker() -> str:
    """What begins the lines of this process; nothing where it is alone."""
    return _speaker


def heed_signals() -> None:
    """Has SIGTERM and Ctrl-C end this process at once, with a line; `train` saves first, once it
    has begun to.

    An exception would go unheard in the callbacks where Python may be at that moment. And where the
    main thread is in C, compiling or waiting for other processes, it runs no handlers: so a thread
    hears of signals too. (A child by `os.fork` alone would share its pipe; nothing here makes one.)
    """
    heard, told = os.pipe()
    os.set_blocking(told, False)
    for number in _STOPPED:
        signal.signal(number, _stop)
    signal.set_wakeup_fd(told)
    threading.Thread(target=_listen, args=(heard,), daemon=True).start()


def _listen(heard: int) -> None:
    interrupts = 0
    while True:
        (number,) = os.read(heard, 1)
        interrupts += number == signal.SIGINT
        # Training's loop has its own handler, which waits for the step, if for a first Ctrl-C only.
        if signal.getsignal(number) is _stop or (number == signal.SIGINT and interrupts > 1):
            _stop(number, None)


def _stop(number: int, frame: FrameType | None) -> None:
    if _code == BAD_INPUT or not _stopping.acquire(blocking=False):
        return  # another process's end does not make bad input good
    name, code = _STOPPED[number]
    _say(f"{_speaker}error: stopped by {name}; run the same command again\n")
    os._exit(code)


def fail(error: Exception | str, code: int) -> NoReturn:
    """Ends this process with the error's line and `code`. It waits for nobody: not for other
    processes, and not for threads, of which Orbax leaves some behind that wait for minutes when a
    save could not begin."""
    sys.stdout.flush(), sys.stderr.flush()
    _end(f"{_speaker}error: {' '.join(str(error).split())}\n", code)


def leave(code: int) -> NoReturn:
    """Ends this process with `code`; what there was to say has been said."""
    if code or _failing.locked():
        sys.stdout.flush(), sys.stderr.flush()
        _end("", code)
    sys.exit(0)


def say_on_abort(line: str | None) -> None:
    """From here on an abort of this process ends it with `line` and code 1; None undoes that.

    JAX aborts when processes do not meet, or are lost. Python's own handlers run in the main
    thread, which does not go on then; so this is one of C's.
    """

    @ctypes.CFUNCTYPE(None, ctypes.c_int)
    def end(number: int) -> None:
        _end(f"{line}\n", FAILED)

    global _on_abort
    _on_abort = None if line is None else end
    ctypes.CDLL(None).signal(int(signal.SIGABRT), _on_abort)


def _end(line: str, code: int) -> NoReturn:
    """Ends this process once it had its grace, unless another thread is about to."""
    global _code
    if not _failing.acquire(blocking=False):
        threading.Event().wait()
    _code = code
    _say(line)
    time.sleep(GRACE_SECONDS if _speaker else 0)
    os._exit(code)


def _say(line: str) -> None:
    """In one piece, or what JAX's threads say comes in between; print may have been interrupted."""
    with contextlib.suppress(OSError):
        os.write(2, line.encode())
