"""A run that is killed, stopped or damaged ends bit for bit as one that nothing happened to.

Real processes and real signals, on the digits with a tiny model.
"""

import random
import re
import signal
import time
from pathlib import Path

import pytest
from commands import (
    COMPILING_ANEW,
    DEADLINE,
    assert_bit_identical,
    digits,
    run,
    saved_arrays,
    start,
    wait_until,
)

STEPS = 240
CHECKPOINT_EVERY = 10


def flags(workdir, **overrides):
    fields = {"train__steps": STEPS, "train__log_every": 5, "train__checkpoint_every": 10_000}
    return digits(workdir, **fields | overrides)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Every array that an uninterrupted run ends with."""
    workdir = tmp_path_factory.mktemp("whole")
    result = run("train", flags(workdir))
    assert (result.code, result.err) == (0, "")
    arrays = saved_arrays(workdir, STEPS)
    parts = {re.match(r"\['(\w+)'\]", path)[1] for path in arrays}
    assert parts == {"step", "params", "ema", "opt_state", "params_sra", "ema_sra"}
    assert arrays["['step']"] == STEPS
    return arrays


def saved_steps(workdir) -> list[int]:
    """Steps whose checkpoint is complete on disk."""
    return sorted(int(p.name) for p in Path(workdir, "checkpoints").glob("*") if p.name.isdecimal())


def resumed_from(output: str) -> int:
    """The step that a run says it goes on from; 0 if it starts anew."""
    found = re.search(r"resuming from step ([\d,]+)", output)
    return int(found[1].replace(",", "")) if found else 0


def test_killed_at_any_moment_and_run_again(whole, tmp_path):
    workdir, moments = tmp_path / "run", random.Random(0)
    command = flags(workdir, train__checkpoint_every=CHECKPOINT_EVERY)
    kills = [
        (lambda: workdir.exists(), 2.0),  # while the data are written, or the step is compiled
        (lambda: saved_steps(workdir), 0.2),  # while it trains and saves
        (lambda: max(saved_steps(workdir)) > newest, 0.2),
    ]
    newest = 0
    for reached, longest in kills:
        with open(tmp_path / "output", "w+") as output:
            process = start("train", command, out=output)
            wait_until(reached, process)
            time.sleep(moments.uniform(0, longest))
            process.kill()
            process.communicate()
            assert process.returncode == -signal.SIGKILL
            output.seek(0)
            assert resumed_from(output.read()) == newest
        newest = max(saved_steps(workdir), default=0)
    assert 0 < newest < STEPS
    result = run("train", command, **COMPILING_ANEW)
    assert (result.code, result.err) == (0, "")
    assert resumed_from(result.out) == newest
    assert_bit_identical(saved_arrays(workdir, STEPS), whole)


def stop(process, output, number) -> int:
    """Sends a signal once `process` has logged a few steps, and returns the step last logged."""

    def logged():
        return [int(step) for step in re.findall(r"step (\d+)/", Path(output.name).read_text())]

    wait_until(lambda: len(logged()) >= 3, process)
    process.send_signal(number)
    return logged()[-1]


def test_stopped_by_signals_then_damaged(whole, tmp_path):
    workdir, reached = tmp_path / "run", 0
    for number, code in ((signal.SIGTERM, 75), (signal.SIGINT, 130)):
        with open(tmp_path / "output", "w+") as output:
            process = start("train", flags(workdir), out=output)
            logged = stop(process, output, number)
            _, err = process.communicate(timeout=DEADLINE)
            said = Path(output.name).read_text()
        assert (process.returncode, err) == (code, "")
        assert resumed_from(said) == reached
        reached = max(saved_steps(workdir))
        assert logged <= reached < STEPS
        assert f"stopped, run the same command to go on: step {reached} is saved" in said

    def complete(**extra):
        result = run("train", flags(workdir), **extra)
        assert (result.code, result.err) == (0, "")
        assert resumed_from(result.out) == reached
        assert_bit_identical(saved_arrays(workdir, STEPS), whole)
        return result

    complete(**COMPILING_ANEW)
    flip_a_bit(workdir / "checkpoints" / str(STEPS) / "params")
    warned = complete().out
    assert f"checkpoints/{STEPS} is damaged and not used" in warned
    assert f"finished: step {STEPS} is saved" in warned


def flip_a_bit(tree: Path) -> None:
    """Damages the array data of a saved tree."""
    path = max((p for p in tree.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)
