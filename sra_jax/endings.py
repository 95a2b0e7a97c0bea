"""How one of several processes ends: with a word of its own, and without waiting for the others.

Left alone, JAX lets processes end only together: one that fails waits in a barrier for those that
wait for it, and one whose others are gone is aborted from a thread of C++, below a page of theirs.
"""

import ctypes
import os
import signal
import sys
import time
from typing import NoReturn

from sra_jax.errors import FAILED

# What one process has refused, the others most often refuse as well: they get time to say so. And
# where one is lost, a SIGTERM to all of them may be on its way here, and end this one as it should.
GRACE_SECONDS = 5.0
LOST = (
    "another process of this run has most likely ended or cannot be reached; see what it said, and "
    "start all of them again: they go on from what is saved"
)

_exit_code: int | None = None  # once this process is about to end by itself
_on_abort = None  # the handler, of which C has but the address


def leave(code: int, grace: float) -> NoReturn:
    """Ends this process with `code` in `grace` seconds, whatever its threads or the other processes
    do, which notice it."""
    global _exit_code
    _exit_code = code
    sys.stdout.flush(), sys.stderr.flush()
    time.sleep(grace)
    os._exit(code)


def say_on_abort(line: str | None) -> None:
    """From here on an abort of this process ends it with `line` and, `GRACE_SECONDS` later, code 1;
    None undoes that.

    JAX aborts when processes do not meet, or are lost. Python's own handlers run in the main
    thread, which does not go on then; so this is one of C's.
    """

    @ctypes.CFUNCTYPE(None, ctypes.c_int)
    def end(number: int) -> None:
        if _exit_code is None:
            os.write(2, f"{line}\n".encode())
            time.sleep(GRACE_SECONDS)
        os._exit(FAILED if _exit_code is None else _exit_code)

    global _on_abort
    _on_abort = None if line is None else end
    ctypes.CDLL(None).signal(int(signal.SIGABRT), _on_abort)
