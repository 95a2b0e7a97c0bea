"""Tables of a benchmark: printed as they grow, and written to a JSON file that a cut never spoils.

`gpu.py` runs several scripts one after the other, each a part of one call; with `--record` a script
adds its rows to the call's file, each row as soon as it is known. Without, it only prints.

    {"calls": [{"command": ..., "began": ..., "parts": {
        "train": {"outcome": "done", "seconds": 140.2, "machine": ..., "tables": {
            "steps": [{"model": "XL/2", "batch": 64, "images_per_second": ...}, ...]}}}}]}
"""

import argparse
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


class Table:
    """One table: `add` prints a row and records it. Columns are fixed; a missing value is blank."""

    def __init__(self, record: "Record", name: str, columns: Sequence[str]):
        self.name, self._record, self._columns = name, record, tuple(columns)
        self.rows = 0  # how many rows hold a measurement: those without `refused`

    def add(self, **values: Any) -> None:
        """Adds a row of numbers and words by column name. Numbers are recorded unrounded.

        Raises:
          ValueError: a name that is not a column.
        """
        if unknown := values.keys() - set(self._columns):
            raise ValueError(f"table {self.name} has no column {', '.join(sorted(unknown))}")
        if self._record.shown is not self:  # nor was a row of another table printed since
            self._record.shown = self
            print(f"\n| {' | '.join(name.replace('_', ' ') for name in self._columns)} |")
            print("|---" * len(self._columns) + "|")
        print(f"| {' | '.join(_shown(values.get(name)) for name in self._columns)} |", flush=True)
        self._record.write(self.name, values)
        self.rows += values.get("refused") is None


class Record:
    """The rows of one part, written to the last call in `file`, or nowhere without a file."""

    def __init__(self, file: Path | None = None, part: str = ""):
        self._file, self._part = file, part
        self.shown: Table | None = None  # the table whose rows are being printed

    def table(self, name: str, columns: Sequence[str]) -> Table:
        return Table(self, name, columns)

    def note(self, **facts: Any) -> None:
        """Records facts of the part itself, as its machine or its outcome."""
        self._change(lambda part: part.update(facts))

    def write(self, table: str, row: Mapping[str, Any]) -> None:
        """Records one row of `table`; JSON knows no infinity, so words stand for it and for NaN."""
        row = {
            name: str(value) if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in row.items()
        }
        self._change(lambda part: part.setdefault("tables", {}).setdefault(table, []).append(row))

    def has_rows(self) -> bool:
        """True if this part of the last call has any row."""
        if self._file is None:
            return False
        return bool(read_calls(self._file)[-1]["parts"].get(self._part, {}).get("tables"))

    def rows(self, table: str, part: str) -> list[dict[str, Any]]:
        """The rows of another part's table in the same call; none without a file."""
        if self._file is None:
            return []
        parts = read_calls(self._file)[-1]["parts"]
        return parts.get(part, {}).get("tables", {}).get(table, [])

    def _change(self, change) -> None:
        if self._file is not None:
            calls = read_calls(self._file)
            change(calls[-1]["parts"].setdefault(self._part, {}))
            write_calls(self._file, calls)


def read_calls(file: Path) -> list[dict[str, Any]]:
    """The calls in `file`, oldest first; none if it does not exist.

    Raises:
      ValueError: the file holds something else.
    """
    if not file.exists():
        return []
    try:
        calls = json.loads(file.read_text())["calls"]
    except (ValueError, KeyError, TypeError):
        calls = None
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise ValueError(f"{file} is not a record of calls; move it away")
    return calls


def write_calls(file: Path, calls: list[dict[str, Any]]) -> None:
    """Replaces `file` by one that holds `calls`: it is whole at every moment.

    gpu.py calls it where sra_jax cannot be imported, so `core.files.atomic_write` does not serve.
    """
    scratch = file.with_suffix(".tmp")
    scratch.write_text(json.dumps({"calls": calls}, indent=1) + "\n")
    os.replace(scratch, file)


def one_line(error: Exception) -> str:
    """The message of `error` in one line, of 1,000 characters at most."""
    return " ".join(str(error).split())[:1000]


class Clock:
    """The time that a script may take, from its start; without a limit, any."""

    def __init__(self, seconds: float | None = None):
        self._limit, self._began = seconds, time.perf_counter()

    @property
    def left(self) -> float:
        """Seconds left; infinity without a limit."""
        if self._limit is None:
            return float("inf")
        return self._limit - (time.perf_counter() - self._began)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that `gpu.py` gives to the script of a part."""
    add = parser.add_argument
    add("--record", type=Path, metavar="FILE", help="JSON file to add the tables to")
    add("--part", default="", help="name of this script's part in that file")
    add("--seconds", type=float, help="start nothing that would take longer than what is left")
    add("--tiny", action="store_true", help="the smallest sizes, to try the script on a CPU")


def start(options: argparse.Namespace) -> tuple[Record, Clock]:
    """The record and the clock that the flags of `add_flags` describe."""
    return Record(options.record, options.part), Clock(options.seconds)


def _shown(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    return str(value)
