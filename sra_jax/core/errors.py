"""Errors that a user sees as one line, and the exit codes of the commands."""

import difflib
from collections.abc import Iterable

FAILED = 1
BAD_INPUT = 2
PREEMPTED = 75  # exit code after SIGTERM: run the same command again (EX_TEMPFAIL)
INTERRUPTED = 130  # exit code after Ctrl-C
LOST = (
    "another process of this run has most likely ended or cannot be reached; see its output, and "
    "start all of them again: they resume from the last checkpoint"
)


class InputError(ValueError):
    """Bad input from a user: names the value, what was expected and what to do.

    The commands print it as one line on stderr and exit with code 2.
    """

    def _render_traceback_(self) -> list[str]:
        """Returns what IPython shows in a notebook in place of a traceback."""
        return [f"error: {self}"]


def expect_one_of(what: str, value: str, known: Iterable[str]) -> None:
    """Raises InputError unless `value` is one of `known`; suggests the nearest name."""
    known = list(known)
    if value in known:
        return
    near = difflib.get_close_matches(str(value), known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise InputError(f"unknown {what} {value!r}, expected one of {', '.join(known)}{hint}")


class RunError(RuntimeError):
    """A run cannot continue: says where it stopped, what is saved and what to do.

    The commands print it as one line on stderr and exit with code 1.
    """
