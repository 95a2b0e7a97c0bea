"""What is lost when training, encoding and sampling are killed, stopped and damaged, many times.

  python benchmarks/faults.py [--rounds=12] [--seed=0] [--folder=DIR]

Everything is done by the commands themselves, on the digits, with a tiny model that keeps only its
newest checkpoint. In every round each fault is injected once, at a random moment, and the same
command is then run until it has finished; what that leaves is compared bit for bit with what an
undisturbed run leaves. Prints a table, and exits with 1 if anything differed.
"""

import argparse
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from commands import Forks, Kill, Result, assert_bit_identical, digits, saved_arrays

from sra_jax.core.errors import PREEMPTED

STEPS, EVERY = 150, 5
DELETION = "SIGKILL inside the deletion of the old checkpoint"
# Of a checkpoint of a run with SRA.
PARTS = {"params", "params_sra", "ema", "ema_sra", "opt_state", "step", "_CHECKPOINT_METADATA"}


class Runs:
    """Runs of the commands in one folder; the random moments come from one seed."""

    def __init__(self, forks: Forks, folder: Path, seed: int):
        self.forks, self.folder, self.random = forks, folder, random.Random(seed)
        images = np.random.default_rng(seed).integers(0, 256, (3000, 32, 32, 3), np.uint8)
        np.savez(folder / "images.npz", images=images, labels=np.arange(len(images)) % 10)
        self.seconds = {}
        for target in ("first", "whole"):  # the second time nothing is compiled
            for name in ("train", "encode", "sample"):
                began = time.monotonic()
                self.run(name, target)
                self.seconds[name] = time.monotonic() - began
        self.trained = saved_arrays(folder / "whole", STEPS)

    def run(self, name: str, target: str, kill: Kill | None = None, **overrides) -> Result:
        """Runs the command that makes `target`; without a `kill` it has to succeed."""
        fields = {"train__steps": STEPS, "train__checkpoint_every": EVERY, "train__keep": 1}
        flags = {
            "train": lambda: digits(self.folder / target, train__log_every=1, **fields | overrides),
            "encode": lambda: [
                f"--source={self.folder / 'images.npz'}",
                f"--out={self.folder / target}.set",
                "--codec=pixels",
                "--resolution=32",
            ],
            "sample": lambda: [
                f"--workdir={self.folder / 'first'}",
                f"--out={self.folder / target}.npz",
                "--num=200",
                "--chunk=20",
                "--solver_steps=10",
            ],
        }[name]()
        result = self.forks.run(name, flags, kill)
        if kill is None and result.code:
            raise SystemExit(f"{name} of {target} ended with {result.code}: {result.err}")
        return result

    def is_as_undisturbed(self, name: str, target: str) -> bool:
        """Whether `target` is bit for bit what the undisturbed run has left."""
        ours, whole = self.folder / target, self.folder / "whole"
        if name == "train":
            try:
                assert_bit_identical(saved_arrays(ours, STEPS), self.trained)
            except AssertionError:
                return False
            return True
        if name == "sample":
            with np.load(f"{ours}.npz") as found, np.load(f"{whole}.npz") as expected:
                return all((found[key] == expected[key]).all() for key in ("arr_0", "labels"))
        found, expected = Path(f"{ours}.set"), Path(f"{whole}.set")
        names = sorted(path.name for path in expected.iterdir())
        return names == sorted(path.name for path in found.iterdir()) and all(
            (found / name).read_bytes() == (expected / name).read_bytes() for name in names
        )


class Tally:
    """How often each fault happened, what it cost, and after which the result was another one."""

    def __init__(self):
        self.count, self.repeated, self.wrong = Counter(), defaultdict(list), Counter()

    def add(self, fault: str, repeated: int | None = None) -> None:
        """Counts a fault, after which `repeated` steps had to be made again."""
        self.count[fault] += 1
        if repeated is not None:
            self.repeated[fault].append(repeated)

    def add_wrong(self, faults: list[str]) -> None:
        """Notes that after these faults, in one run, the result was another one."""
        self.wrong.update(set(faults))

    def table(self) -> str:
        """The Markdown table."""
        lines = ["| fault | injected | steps made again, mean (most) | results that differ |"]
        lines.append("|---|---|---|---|")
        for fault, count in self.count.items():
            steps = self.repeated[fault]
            again = f"{np.mean(steps):.1f} ({max(steps)})" if steps else ""
            lines.append(f"| {fault} | {count} | {again} | {self.wrong[fault]} |")
        return "\n".join(lines)


def last_logged(output: str) -> int:
    """The last step that a run says it has made; 0 if none."""
    steps = re.findall(r"step ([\d,]+)/", output)
    return int(steps[-1].replace(",", "")) if steps else 0


def resumed_from(output: str) -> int:
    """The step that a run says it goes on from; 0 if it starts anew."""
    found = re.search(r"resuming from step ([\d,]+)", output)
    return int(found[1].replace(",", "")) if found else 0


def disturb_training(runs: Runs, tally: Tally, target: str) -> list[str]:
    """Kills and stops one training run in many ways, one after the other; returns the faults."""
    workdir, checkpoints = runs.folder / target, runs.folder / target / "checkpoints"
    moments = [  # what appears just before, and for how long after it the moment may be
        ("SIGKILL while data and lock are made", workdir, r"data|\.lock", 0.1),
        ("SIGKILL while restoring", workdir, r"\.lock", 0.6),
        ("SIGKILL while compiling or training", workdir, r"\.lock", 2.0),
        ("SIGKILL inside an asynchronous save", checkpoints, r"\d+\.orbax.*", 0.05),
        ("SIGKILL just after a save", checkpoints, r"\d+", 0.005),
        (DELETION, checkpoints, r".+", 0.003),
        ("SIGTERM while training", checkpoints, r"\d+", 0.2),
    ]
    injected, made = [], 0
    for fault, directory, pattern, longest in [moments[0], *runs.random.sample(moments, 7)]:
        (workdir / ".lock").unlink(missing_ok=True)  # its appearance is waited for
        number = signal.SIGTERM if "SIGTERM" in fault else signal.SIGKILL
        if fault == DELETION:
            steps = [int(path.name) for path in checkpoints.glob("*") if path.name.isdecimal()]
            directory = checkpoints / str(max(steps, default=0))
        delay = runs.random.uniform(0, longest)
        kill = Kill(delay, str(directory), pattern, number, gone=fault == DELETION)
        result = runs.run("train", target, kill)
        if injected:
            settle(tally, injected, made, result)
        made = max(last_logged(result.out), resumed_from(result.out)) or made
        if result.code not in (-signal.SIGKILL, PREEMPTED):
            break  # it had finished
        left = is_half_deleted(checkpoints)
        injected.append(
            f"{fault}, {'half' if left else 'all'} of it gone" if fault == DELETION else fault
        )
    result = runs.run("train", target)
    settle(tally, injected, made, result)
    return injected


def settle(tally: Tally, injected: list[str], made: int, after: Result) -> None:
    """Counts the last fault, which came when `made` steps were made, by where it goes on `after`.

    A run that was killed before it could say so leaves that open.
    """
    said = "resuming" in after.out or "compiling" in after.out
    tally.add(injected[-1], made - resumed_from(after.out) if said else None)


def is_half_deleted(checkpoints: Path) -> bool:
    """Whether a checkpoint lacks a part; one that is being saved has another name."""
    steps = [path for path in checkpoints.glob("*") if path.name.isdecimal()]
    return any(not set(os.listdir(path)) >= PARTS for path in steps)


def damage(runs: Runs, tally: Tally, target: str) -> list[str]:
    """Damages the newest of two checkpoints in one random way; returns the fault."""
    workdir, half = runs.folder / target, runs.folder / "half"
    if not half.exists():
        runs.run("train", "half", train__steps=STEPS // 2, train__keep=2)
    shutil.copytree(half, workdir)
    newest = workdir / "checkpoints" / str(STEPS // 2)
    files = sorted(path for path in newest.rglob("*") if path.is_file())
    file = runs.random.choice(files)
    fault = runs.random.choice(list(DAMAGES))
    DAMAGES[fault](runs.random, newest, files, file)
    result = runs.run("train", target, train__keep=2)
    tally.add(fault, STEPS // 2 - resumed_from(result.out))
    return [fault]


def flip(chance: random.Random, newest: Path, files: list[Path], file: Path) -> None:
    """Flips a bit."""
    data = bytearray(file.read_bytes())
    if data:
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    file.write_bytes(data)


def truncate(chance: random.Random, newest: Path, files: list[Path], file: Path) -> None:
    """Cuts off the end."""
    os.truncate(file, chance.randrange(max(file.stat().st_size, 1)))


def empty(chance: random.Random, newest: Path, files: list[Path], file: Path) -> None:
    """Leaves the directory alone."""
    shutil.rmtree(newest)
    newest.mkdir()


def half_delete(chance: random.Random, newest: Path, files: list[Path], file: Path) -> None:
    """Deletes some of the files."""
    for path in chance.sample(files, chance.randint(1, len(files))):
        path.unlink()


DAMAGES: dict[str, Callable] = {
    "a bit of the newest checkpoint flipped": flip,
    "a file of it truncated": truncate,
    "it is an empty directory": empty,
    "it is half-deleted": half_delete,
}


def disturb(runs: Runs, tally: Tally, target: str, name: str) -> list[str]:
    """Kills or stops `encode` or `sample` at some moment, three times; returns the faults."""
    injected = []
    for number in runs.random.sample([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM], 3):
        kill = Kill(runs.random.uniform(0, runs.seconds[name]), number=number)
        if runs.run(name, target, kill).code in (-signal.SIGKILL, PREEMPTED):
            injected.append(f"{number.name} while {name[:-1]}ing")  # encode, sample
            tally.add(injected[-1])
    runs.run(name, target)
    return injected


def main() -> None:
    """Injects faults, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", help="where to put the temporary directory")
    options = parser.parse_args()
    began, tally = time.monotonic(), Tally()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder, Forks() as forks:
        runs = Runs(forks, Path(folder), options.seed)
        for number in range(options.rounds):
            for name, inject in {
                "train": disturb_training,
                "damage": damage,
                "encode": partial(disturb, name="encode"),
                "sample": partial(disturb, name="sample"),
            }.items():
                target = f"{name}-{number}"
                faults = inject(runs, tally, target)
                if not runs.is_as_undisturbed("train" if name == "damage" else name, target):
                    tally.add_wrong(faults)
                shutil.rmtree(runs.folder / target, ignore_errors=True)
            print(f"round {number + 1}, {time.monotonic() - began:.0f} s", file=sys.stderr)
            print(tally.table(), file=sys.stderr)
    print(tally.table())
    kills = sum(count for fault, count in tally.count.items() if "SIGKILL" in fault)
    print(f"\n{kills} times SIGKILL; results that differ: {sum(tally.wrong.values())}")
    sys.exit(bool(tally.wrong))


if __name__ == "__main__":
    main()
