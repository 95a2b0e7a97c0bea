"""Nested plain values."""

from collections.abc import Collection
from typing import Any


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
