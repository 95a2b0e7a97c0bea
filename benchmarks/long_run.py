"""What a long run gathers: memory, file handles, threads, compiled programs.

  python benchmarks/long_run.py [--steps=20000] [--folder=DIR]

Trains a tiny model on the digits by the command itself, with a report every 100 steps and a
checkpoint every 500, and looks at its process from outside each time it reports. Slopes are fitted
over the second half, where caches are full.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from commands import digits, environment

PAGE = os.sysconf("SC_PAGE_SIZE")


class Look(NamedTuple):
    """The process after `step`: resident megabytes, open files, threads, programs compiled."""

    step: int
    megabytes: float
    files: int
    threads: int
    compiled: int


def watch(
    workdir: Path, steps: int, checkpoint_every: int = 500, log_every: int = 100
) -> list[Look]:
    """Trains for `steps`; a look at every report. Raises RuntimeError if the run fails."""
    flags = digits(
        workdir,
        train__steps=steps,
        train__checkpoint_every=checkpoint_every,
        train__log_every=log_every,
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "sra_jax", "train", *flags],
        env=environment(JAX_LOG_COMPILES="1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    looks, compiled, last = [], 0, ""
    for last in process.stdout:
        compiled += "Finished XLA compilation of" in last
        if found := re.search(r" step ([\d,]+)/", last):
            looks.append(look(process.pid, int(found[1].replace(",", "")), compiled))
    if process.wait():
        raise RuntimeError(f"the run ended with {process.returncode}: {last}")
    return looks


def look(pid: int, step: int, compiled: int) -> Look:
    """The process as the system sees it now."""
    proc = Path(f"/proc/{pid}")
    resident = int((proc / "statm").read_text().split()[1]) * PAGE / 1e6
    return Look(
        step, resident, len(os.listdir(proc / "fd")), len(os.listdir(proc / "task")), compiled
    )


def slope(looks: list[Look], field: str) -> float:
    """Of a least-squares line through the second half, per 1,000 steps."""
    half = looks[len(looks) // 2 :]
    values = [getattr(one, field) for one in half]
    return float(np.polyfit([one.step / 1000 for one in half], values, 1)[0])


def main() -> None:
    """Trains, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--folder", help="where to put the temporary directory")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        looks = watch(Path(folder) / "run", options.steps)
    middle, end = looks[len(looks) // 2], looks[-1]
    print(f"{options.steps:,} steps; load {os.getloadavg()[0]:.1f}\n")
    print(f"| | step {middle.step:,} | step {end.step:,} | a 1,000 steps |\n|---|---|---|---|")
    for field, name in {
        "megabytes": "resident memory, MB",
        "files": "open files",
        "threads": "threads",
        "compiled": "programs compiled so far",
    }.items():
        values = getattr(middle, field), getattr(end, field)
        print(f"| {name} | {values[0]:.0f} | {values[1]:.0f} | {slope(looks, field):+.3f} |")


if __name__ == "__main__":
    main()
