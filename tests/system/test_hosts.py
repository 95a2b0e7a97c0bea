"""Two real processes train one run together, are preempted or lose one, and others finish it."""

import re
import signal
import time

import numpy as np
import pytest
from commands import (
    devices,
    digits,
    finish,
    reported_losses,
    run,
    saved_arrays,
    start_two,
    wait_until,
)

STEPS = 40


def flags(workdir, **overrides):
    fields = {"train__steps": STEPS, "train__log_every": 2, "train__checkpoint_every": 10_000}
    return digits(workdir, **fields | overrides)


def train_in_two(workdir, **overrides):
    """Two processes, over which the parameters are split, that log to WORKDIR.0.log and .1.log."""
    return start_two("train", flags(workdir, mesh__fsdp=2, **overrides), logs=workdir)


def wait_for_log(processes, path, pattern):
    wait_until(lambda: re.search(pattern, path.read_text()), *processes)


def assert_close(found, expected):
    for path, array in expected.items():
        if "opt_state" in path or ("qkv" in path and "bias" in path):
            continue  # the keys' bias has no gradient but rounding, which Adam amplifies
        difference = np.linalg.norm(found[path] - array.astype(np.float64))
        assert difference <= 1e-4 * np.linalg.norm(array) + 1e-6, path


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The workdir of a run by one process with one device."""
    workdir = tmp_path_factory.mktemp("alone")
    assert run("train", flags(workdir), **devices(1)).code == 0
    return workdir


def test_two_processes_are_preempted_together_and_one_goes_on(tmp_path, alone):
    workdir = tmp_path / "run"
    processes = train_in_two(workdir)
    wait_for_log(processes, workdir.with_suffix(".0.log"), r"step \d+/40")
    processes[1].terminate()  # either of them is told, both save
    results = [finish(process) for process in processes]
    assert [result.code for result in results] == [75, 75], results

    log = workdir.with_suffix(".0.log").read_text()
    step = int(re.search(r"stopped, .*: step (\d+) is saved", log)[1])
    assert 0 < step < STEPS
    assert "step" not in workdir.with_suffix(".1.log").read_text()  # the first one reports

    result = run("train", flags(workdir), **devices(1))
    assert result.code == 0 and f"resuming from step {step}" in result.out
    assert_close(saved_arrays(workdir, STEPS), saved_arrays(alone, STEPS))


def losses(workdir):
    """(step, loss) of every start of a run."""
    return reported_losses(workdir / "tensorboard")


def saved_steps(workdir) -> list[int]:
    names = [path.name for path in (workdir / "checkpoints").glob("*")]
    return [0, *sorted(int(name) for name in names if name.isdecimal())]


def assert_told_of_the_loss(process, since):
    """It ends by itself within a minute, with one clear line among what JAX says."""
    result = finish(process)
    assert time.monotonic() - since < 60
    assert result.code == 1
    assert "error: " in result.err, result.err
    (line,) = [line for line in result.err.splitlines() if "error: " in line]
    assert "another process of this run has most likely ended" in line
    assert "start all of them again" in line and "Traceback" not in result.err


def test_one_process_is_killed_the_other_ends_and_both_go_on(tmp_path, alone):
    workdir, reached = tmp_path / "run", 0
    for victim in (1, 0):
        processes = train_in_two(workdir, train__checkpoint_every=2)
        log = workdir.with_suffix(".0.log")
        wait_for_log(processes, log, r"step \d+/40 [\s\S]*step \d+/40 ")
        assert (f"resuming from step {reached}" in log.read_text()) == (reached > 0)
        wait_until(lambda reached=reached: saved_steps(workdir)[-1] > reached)
        processes[victim].kill()
        killed = time.monotonic()
        assert_told_of_the_loss(processes[1 - victim], killed)
        processes[victim].communicate()
        reached = saved_steps(workdir)[-1]
        assert reached < STEPS

    result = run("train", flags(workdir, mesh__fsdp=2), **devices(4))
    assert result.code == 0 and f"resuming from step {reached}" in result.out
    assert_close(saved_arrays(workdir, STEPS), saved_arrays(alone, STEPS))
    expected = dict(losses(alone))
    reported = [(step, loss) for step, loss in losses(workdir) if step % 2 == 0]
    assert len(reported) > len(expected) / 2
    for step, loss in reported:
        assert loss == pytest.approx(expected[step], rel=1e-5), step


@pytest.mark.slow
def test_a_process_that_hangs_is_given_up_within_a_minute(tmp_path):
    processes = train_in_two(tmp_path / "run")
    wait_for_log(processes, tmp_path / "run.0.log", r"step \d+/40")
    processes[1].send_signal(signal.SIGSTOP)
    assert_told_of_the_loss(processes[0], time.monotonic())
    processes[1].kill()
    processes[1].communicate()


def test_sampling_together_is_stopped_at_once(tmp_path, alone):
    """JAX's preemption service, which `train` listens to, would keep the signal to itself."""
    flags = [f"--workdir={alone}", f"--out={tmp_path}/out.npz", "--num=10000", "--chunk=4"]
    processes = start_two("sample", flags)
    wait_until(lambda: any((tmp_path / "out.npz.parts").glob("*.npy")), *processes)
    processes[0].terminate()
    results = [finish(processes[0])]
    while "another process of this run" not in processes[1].stderr.readline():
        assert processes[1].poll() is None
    processes[1].terminate()
    results.append(finish(processes[1]))
    assert [result.code for result in results] == [75, 75], results
    assert "[process 1 of 2] error: stopped by SIGTERM" in results[1].err


def test_bad_input_names_the_process(tmp_path):
    results = [finish(p) for p in train_in_two(tmp_path / "run", train__batch_size=7)]
    for rank, result in enumerate(results):
        line = f"[process {rank} of 2] error: batch size 7 does not divide over 2 devices"
        assert result.code == 2 and line in result.err, result
