"""How a command ends other than well: what a user did wrong, in one line, and exit codes."""

import difflib
from collections.abc import Collection, Iterable
from typing import Any

FAILED = 1
BAD_INPUT = 2
PREEMPTED = 75  # exit code after SIGTERM: run the same command again (EX_TEMPFAIL)
INTERRUPTED = 130  # exit code after Ctrl-C


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


def differences(old: Any, new: Any, leave_out: Collection[str] = (), name: str = "") -> list[str]:
    """ "section.field was 1, is 2" for whatever differs between plain trees, but for the fields (or
    sections) that are to be left out."""
    if name in leave_out:
        return []
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            line
            for key in sorted(old.keys() | new.keys())
            for line in differences(
                old.get(key), new.get(key), leave_out, f"{name}.{key}".lstrip(".")
            )
        ]
    return [] if old == new else [f"{name} was {old}, is {new}"]


class RunError(RuntimeError):
    """A run that cannot go on; says where it stopped, what is safe and what to do.

    The commands print it as one line on stderr and exit with code 1.
    """
