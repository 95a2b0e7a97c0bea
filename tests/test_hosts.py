"""Two real processes train one run together, are preempted, and one process finishes it."""

import re
import socket
import time

import numpy as np
import pytest
from commands import DEADLINE, devices, digits, finish, run, saved_arrays, start

STEPS = 40


def flags(workdir, **overrides):
    fields = {"train__steps": STEPS, "train__log_every": 2, "train__checkpoint_every": 10_000}
    return digits(workdir, **fields | overrides)


def start_two(workdir, **overrides):
    """Two processes of one device each, over which the parameters are split."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    together = [f"--coordinator=127.0.0.1:{port}", "--num_processes=2"]
    return [
        start(
            "train",
            [*flags(workdir, mesh__fsdp=2, **overrides), *together, f"--process_id={rank}"],
            out=open(workdir.with_suffix(f".{rank}.log"), "w"),
            **devices(1),
        )
        for rank in range(2)
    ]


def wait_for(processes, path, pattern):
    """Returns once the log at `path` matches; fails if a process ends before."""
    deadline = time.monotonic() + DEADLINE
    while not re.search(pattern, path.read_text()):
        ended = [finish(p) for p in processes if p.poll() is not None]
        assert not ended and time.monotonic() < deadline, ended
        time.sleep(0.02)


def assert_close(found, expected):
    for path, array in expected.items():
        if "opt_state" in path or ("qkv" in path and "bias" in path):
            continue  # the keys' bias has no gradient but rounding, which Adam amplifies
        difference = np.linalg.norm(found[path] - array.astype(np.float64))
        assert difference <= 1e-4 * np.linalg.norm(array) + 1e-6, path


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process with one device ends with."""
    workdir = tmp_path_factory.mktemp("alone")
    assert run("train", flags(workdir), **devices(1)).code == 0
    return saved_arrays(workdir, STEPS)


def test_two_processes_are_preempted_together_and_one_goes_on(tmp_path, alone):
    workdir = tmp_path / "run"
    processes = start_two(workdir)
    wait_for(processes, workdir.with_suffix(".0.log"), r"step \d+/40")
    processes[1].terminate()  # either of them is told, both save
    results = [finish(process) for process in processes]
    assert [result.code for result in results] == [75, 75], results

    log = workdir.with_suffix(".0.log").read_text()
    step = int(re.search(r"stopped, .*: step (\d+) is saved", log)[1])
    assert 0 < step < STEPS
    assert "step" not in workdir.with_suffix(".1.log").read_text()  # the first one reports

    result = run("train", flags(workdir), **devices(1))
    assert result.code == 0 and f"resuming from step {step}" in result.out
    assert_close(saved_arrays(workdir, STEPS), alone)


def test_bad_input_names_the_process(tmp_path):
    results = [finish(p) for p in start_two(tmp_path / "run", train__batch_size=7)]
    for rank, result in enumerate(results):
        line = f"[process {rank} of 2] error: batch size 7 does not divide over 2 devices"
        assert result.code == 2 and line in result.err, result
