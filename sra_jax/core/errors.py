"""How a command ends other than well: what a user did wrong, in one line, and exit codes."""

import difflib
from collections.abc import Iterable

FAILED = 1
BAD_INPUT = 2
PREEMPTED = 75  # exit code after SIGTERM: run the same command again (EX_TEMPFAIL)
INTERRUPTED = 130  # exit code after Ctrl-C
LOST = (
    "another process of this run has most likely ended or cannot be reached; see what it said, and "
    "start all of them again: they go on from what is saved"
)


class InputError(ValueError):
    """Bad input from a user: names the value, what was expected and what to do.

    The commands print it as one line on stderr and exit with code 2.
    """

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows in place of a traceback (IPython asks for it by this name)."""
        return [f"error: {self}"]


def expect_one_of(what: str, value: str, known: Iterable[str]) -> None:
    """Raises InputError, with the nearest name, unless `value` is among `known`."""
    known = list(known)
    if value in known:
        return
    near = difflib.get_close_matches(str(value), known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise InputError(f"unknown {what} {value!r}, expected one of {', '.join(known)}{hint}")


class RunError(RuntimeError):
    """A run that cannot go on; says where it stopped, what is safe and what to do.

    The commands print it as one line on stderr and exit with code 1.
    """
