"""Comparison of nested plain values."""

from collections.abc import Collection
from typing import Any


def differences(old: Any, new: Any, leave_out: Collection[str] = (), name: str = "") -> list[str]:
    """Returns "section.field was 1, is 2" for every difference between two nested dicts.

    Fields ("section.field") and sections in `leave_out` are not compared. `name` is the path of
    `old` in the outermost dict.
    """
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
