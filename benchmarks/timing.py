"""What the benchmarks share: timings taken in turns, and tables that say on what and how."""

import itertools
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import NamedTuple, TypeVar

import jax

PACKAGES = ("jax", "jaxlib", "flax", "optax")

T = TypeVar("T")


class Spread(NamedTuple):
    """Median, least and most of several measurements."""

    median: float
    least: float
    most: float

    def __format__(self, spec: str) -> str:
        """ "median (least to most)", each by `spec`."""
        median, least, most = (format(value, spec) for value in self)
        return f"{median} ({least} to {most})"

    def over(self, work: float) -> "Spread":
        """Of seconds: `work` a second."""
        return Spread(work / self.median, work / self.most, work / self.least)

    def scaled(self, factor: float) -> "Spread":
        return Spread(*(factor * value for value in self))


def spread(values: Sequence[float]) -> Spread:
    return Spread(statistics.median(values), min(values), max(values))


def take_turns(calls: Mapping[T, Callable[[], None]], repeats: int) -> dict[T, list[float]]:
    """Seconds of each call in each round; a call must wait for what it starts.

    One round calls them all, so that what else the machine does slows all alike; a first round does
    not count.
    """
    rounds = [{name: seconds(call) for name, call in calls.items()} for _ in range(1 + repeats)]
    return {name: [each[name] for each in rounds[1:]] for name in calls}


def ratio(values: Sequence[float], others: Sequence[float]) -> float:
    """The median, over rounds, of how many times `others` `values` are."""
    return statistics.median(a / b for a, b in zip(values, others, strict=True))


def seconds(call: Callable[[], None]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def listed(kind: Callable[[str], object]) -> Callable[[str], list]:
    """A flag's type: values of `kind`, separated by commas."""
    return lambda text: [kind(part) for part in text.split(",")]


def describe_machine() -> str:
    """Devices, cores, load and versions."""
    device = jax.devices()[0]
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in PACKAGES)
    flags = os.environ.get("XLA_FLAGS")
    return (
        f"{jax.device_count()} x {device.device_kind}; {os.cpu_count()} cores of {_processor()}, "
        f"load {os.getloadavg()[0]:.1f}; Python {platform.python_version()}, {versions}"
        + (f"; XLA_FLAGS {flags}" if flags else "")
    )


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Markdown, a row as soon as it is there."""
    for cells in itertools.chain([header, ["---"] * len(header)], rows):
        print(f"| {' | '.join(cells)} |", flush=True)
    print()


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
