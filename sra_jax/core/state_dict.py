"""Compares the tensors of a file with those that a model expects."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np


def find_mismatch(given: Mapping[str, Any], wanted: Mapping[str, tuple[int, ...]]) -> str:
    """Describes how the tensors of a state dict differ from those of a model.

    Args:
      given: arrays, or anything with a shape, by name.
      wanted: the shape of each of the model's tensors by name.

    Returns:
      The names that are missing or left over; if there are none, the first tensor of another
      shape; "" if everything fits. One line.
    """
    missing, extra = set(wanted) - set(given), set(given) - set(wanted)
    if missing or extra:
        lists = {"missing": missing, "left over": extra}.items()
        return "; ".join(f"{len(ns)} {what} ({shorten(ns)})" for what, ns in lists if ns)
    for name, shape in wanted.items():
        if np.shape(given[name]) != shape:
            return f"{name} has shape {np.shape(given[name])}, expected {shape}"
    return ""


def shorten(names: Iterable[str]) -> str:
    """The first four names in alphabetical order, and how many more there are."""
    names = sorted(names)
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
