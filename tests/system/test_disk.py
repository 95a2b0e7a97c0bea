"""A disk that fails ends a command in one line, nothing is lost, and the same command goes on.

No file of a command grows beyond a limit here: it is refused then as by a full disk.
"""

import subprocess
import sys

import numpy as np
import pytest
from commands import (
    COMPILING_ANEW,
    digits,
    environment,
    finish,
    run,
    saved_arrays,
    start,
    start_python,
    wait_until,
)
from PIL import Image


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The workdir of a run of two steps."""
    workdir = tmp_path_factory.mktemp("trained")
    assert run("train", digits(workdir, train__steps=2)).code == 0
    return workdir


def run_limited(name, flags, kilobytes):
    """Runs a command of which no file grows beyond the limit, nor would what it compiles."""
    command = [sys.executable, "-m", "sra_jax", name, *map(str, flags)]
    limited = ["bash", "-c", f'ulimit -f {kilobytes} && exec "$@"', "-", *command]
    return subprocess.run(
        limited, env=environment(**COMPILING_ANEW), capture_output=True, text=True
    )


def start_denied(name, flags):
    """Starts a command that heeds permissions, also as root: without CAP_DAC_OVERRIDE, and without
    CAP_DAC_READ_SEARCH."""
    drop = (
        "import ctypes, os, sys; libc = ctypes.CDLL(None); PR_CAPBSET_DROP = 24; "
        "[libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) for capability in (1, 2)]; "
        "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    )
    return start_python(["-c", drop, "-m", "sra_jax", name, *flags])


def assert_failed(code, err, *parts):
    """Exit code 1 and one line on stderr, which holds all `parts`."""
    assert code == 1, err
    (line,) = err.splitlines()
    assert line.startswith("error: ")
    for part in parts:
        assert str(part) in line, line


def test_training_ends_with_the_last_good_state_kept(trained, tmp_path):
    workdir = tmp_path / "run"
    flags = digits(
        workdir, data__path=trained / "data/digits", train__steps=6, train__checkpoint_every=2
    )
    for kilobytes, parts in {
        1: [f"{workdir}/config.json: File too large; make room or mend the disk"],
        16: [f"saving step 2 to {workdir}/checkpoints failed", "no step is saved yet: make room"],
    }.items():
        result = run_limited("train", flags, kilobytes)
        assert_failed(result.returncode, result.stderr, *parts)
    result = run("train", flags)
    assert (result.code, result.err) == (0, "") and "finished: step 6 is saved" in result.out
    assert saved_arrays(workdir, 6)["['step']"] == 6


LONG = {"train__steps": 100_000, "train__checkpoint_every": 10}


def wait_for_a_checkpoint(process, workdir):
    wait_until((workdir / "checkpoints" / "10").exists, process)


def test_permissions_taken_away_under_a_run_end_it_and_it_goes_on(tmp_path):
    workdir = tmp_path / "run"
    flags = digits(workdir, evaluation__grid_every=10, sampling__steps="2", **LONG)
    process = start_denied("train", flags)
    wait_for_a_checkpoint(process, workdir)
    (workdir / "samples").mkdir(exist_ok=True)
    (workdir / "samples").chmod(0o555)  # which is told, and ends nothing
    (workdir / "checkpoints").chmod(0o555)
    result = finish(process)
    line = f"to {workdir}/checkpoints failed"
    assert_failed(result.code, result.err, line, "Permission denied", "the last good step is")
    (workdir / "checkpoints").chmod(0o755)
    newest = max(int(path.name) for path in (workdir / "checkpoints").glob("[0-9]*"))
    again = digits(workdir, evaluation__grid_every=10, sampling__steps="2", train__steps=newest + 1)
    result = finish(start_denied("train", again))
    assert (result.code, result.err) == (0, ""), result
    assert f"resuming from step {newest}" in result.out
    assert "nothing is shown of step" in result.out and "Permission denied" in result.out


def test_what_may_not_be_read_is_named(trained, tmp_path):
    (tmp_path / "latents").mkdir(mode=0)
    flags = digits(tmp_path / "run", data__path=tmp_path / "latents", train__steps=1)
    result = finish(start_denied("train", flags))
    line = f"{tmp_path}/latents/dataset_info.json: Permission denied; mend its permissions"
    assert_failed(result.code, result.err, line)


def test_where_may_not_be_written_is_named(tmp_path):
    (tmp_path / "images" / "class").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "images" / "class" / "0.png")
    (tmp_path / "there").mkdir(mode=0o555)
    flags = [f"--source={tmp_path}/images", f"--out={tmp_path}/there/set", "--codec=pixels"]
    result = finish(start_denied("encode", [*flags, "--resolution=8"]))
    assert result.code == 2, result
    line = f"error: cannot write {tmp_path}/there/set.encoding: Permission denied; mend its permi"
    assert result.err.startswith(line) and result.err.count("\n") == 1
    assert list((tmp_path / "there").iterdir()) == []


def test_checkpoints_removed_under_a_run_end_it(trained, tmp_path):
    workdir = tmp_path / "run"
    process = start("train", digits(workdir, **LONG))
    wait_for_a_checkpoint(process, workdir)
    (workdir / "checkpoints").rename(tmp_path / "away")
    result = finish(process)
    assert_failed(result.code, result.err, f"to {workdir}/checkpoints failed", "make room or mend")


def test_sampling_ends_and_goes_on(trained, tmp_path):
    out = tmp_path / "out.npz"
    flags = [
        f"--workdir={trained}",
        f"--out={out}",
        "--num=40",
        "--solver=euler",
        "--solver_steps=2",
    ]
    for chunk, parts in {
        40: [f"cannot write {out}.parts/000000.npy: ", f"are safe in {out}.parts: make room"],
        10: [f"cannot write {out}: ", "finished chunks are safe"],
    }.items():  # 64 bytes an image
        result = run_limited("sample", [*flags, f"--chunk={chunk}"], 1)
        assert_failed(result.returncode, result.stderr, *parts)
        if chunk == 40:
            (tmp_path / "out.npz.parts" / "request.json").unlink()
    result = run("sample", [*flags, "--chunk=10"])
    assert (result.code, result.err) == (0, "") and "4 of 4 chunks are there" in result.out
    assert [path.name for path in tmp_path.iterdir()] == ["out.npz"]
    assert np.load(out)["arr_0"].shape == (40, 8, 8, 1)


def test_a_log_that_cannot_be_written_ends_nothing(trained, tmp_path):
    flags = digits(tmp_path / "run", data__path=trained / "data/digits", train__steps=2)
    with open("/dev/full", "w") as full:
        result = finish(start("train", flags, out=full))
    assert result.code == 0
    assert result.err == "warning: no more log: No space left on device\n"
    assert saved_arrays(tmp_path / "run", 2)["['step']"] == 2
