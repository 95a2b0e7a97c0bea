"""Runs the commands as a user does, in processes of their own.

`start` is `python -m sra_jax NAME`. `Forks` makes many short runs cheap: a process that has
imported what the commands need, and nothing more, runs each as `__main__` in a fork of itself.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

REPOSITORY = Path(__file__).parents[1]
DIGITS = f"--config={REPOSITORY}/configs/digits.py"
DEADLINE = 240  # seconds, for what should take a few
COMPILING_ANEW = {"JAX_ENABLE_COMPILATION_CACHE": "0"}  # for a process not to use what others made


class Result(NamedTuple):
    """How a command ended, and what it said."""

    code: int
    out: str
    err: str


def digits(workdir, config=DIGITS, **overrides) -> list[str]:
    """The flags that train a tiny model on the digits; `section__field=value` overrides a field."""
    fields = {
        "model__width": 16,
        "model__depth": 2,
        "model__num_heads": 2,
        "method__sra__student_block": 1,
        "method__sra__teacher_block": 2,
        "train__batch_size": 8,
        "sampling__steps": 4,
        "evaluation__grid_every": 0,
    } | overrides
    flags = [f"--config.{name.replace('__', '.')}={value}" for name, value in fields.items()]
    return [config, f"--workdir={workdir}", *flags]


def environment(**extra) -> dict[str, str]:
    """That of this process, where commands see the package, CPU only, and `extra`."""
    path = os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])])
    return os.environ | {"PYTHONPATH": path, "JAX_PLATFORMS": "cpu"} | extra


def devices(count: int) -> dict[str, str]:
    """What gives a process `count` virtual CPU devices."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}"
    return {"XLA_FLAGS": flags.strip()}


def start(name: str, flags: list[str], out=subprocess.PIPE, before="", **extra) -> subprocess.Popen:
    """`python -m sra_jax NAME` with `flags`, its output in text pipes or in the file `out`; Python
    code may be run `before` it."""
    command = ["-m", "sra_jax"]
    if before:
        command = ["-c", f"{before}\nfrom sra_jax.cli.main import main\nmain()"]
    return start_python([*command, name, *flags], out, **extra)


def start_python(arguments: list[str], out=subprocess.PIPE, **extra) -> subprocess.Popen:
    """Python with `arguments`, its output in text pipes or in the file `out`."""
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        env=environment(**extra),
        stdout=out,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen) -> Result:
    """Waits for what `start` has returned."""
    try:
        out, err = process.communicate(timeout=DEADLINE)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return Result(process.returncode, out, err)


def run(name: str, flags: list[str], **extra) -> Result:
    """Runs `python -m sra_jax NAME` with `flags`."""
    return finish(start(name, flags, **extra))


def free_address() -> str:
    """host:port of this machine, where nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def start_two(
    name: str, flags: list[str], logs: Path | None = None, before=""
) -> list[subprocess.Popen]:
    """Two processes of one run, of one device each, that write to LOGS.0.log and LOGS.1.log."""
    together = [*flags, f"--coordinator={free_address()}", "--num_processes=2"]
    return [
        start(
            name,
            [*together, f"--process_id={rank}"],
            out=open(logs.with_suffix(f".{rank}.log"), "w") if logs else subprocess.PIPE,
            before=before,
            **devices(1),
        )
        for rank in range(2)
    ]


def wait_until(condition: Callable[[], bool], *processes: subprocess.Popen) -> None:
    """Returns once `condition()` holds; fails if one of `processes` ends before."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        ended = [finish(process) for process in processes if process.poll() is not None]
        assert not ended and time.monotonic() < deadline, ended
        time.sleep(0.005)


def saved_arrays(workdir, step: int) -> dict[str, np.ndarray]:
    """Every array of a checkpoint by its path, read by Orbax alone."""
    from orbax.checkpoint import v1 as ocp

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that it must find out the shardings itself
        trees = ocp.load_checkpointables(Path(workdir).absolute() / "checkpoints" / str(step))
    leaves, _ = jax.tree_util.tree_flatten_with_path(dict(trees))
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def reported_losses(events: Path) -> list[tuple[int, float]]:
    """(step, mean loss since the report before) of every report in a folder of event files."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    return [
        (event.step, value.tensor.float_val[0])
        for path in sorted(events.iterdir())
        for event in EventFileLoader(str(path)).Load()
        for value in event.summary.value
        if value.tag == "loss"
    ]


def assert_bit_identical(arrays: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert arrays.keys() == expected.keys()
    for path, array in expected.items():
        assert (arrays[path].dtype, arrays[path].shape) == (array.dtype, array.shape), path
        assert arrays[path].tobytes() == array.tobytes(), path


def assert_refused(result, *parts):
    """Exit code 2, one line on stderr that holds all `parts`, nothing compiled."""
    assert result.code == 2, result
    (line,) = result.err.splitlines()
    assert line.startswith("error: ")
    for part in parts:
        assert str(part) in line, line
    assert "compil" not in result.out


class Kill(NamedTuple):
    """When to send a command a signal: `delay` seconds after its start or, with a `pattern`, after
    a name that matches it and was not there at the start has appeared in `directory`; or, if
    `gone`, after one that was there has disappeared."""

    delay: float
    directory: str = ""
    pattern: str = ""
    number: int = signal.SIGKILL
    gone: bool = False


class Forks:
    """Runs commands in forks of one process; use as a context."""

    def __enter__(self) -> "Forks":
        self._server = subprocess.Popen(
            [sys.executable, __file__],
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *error) -> None:
        self._server.stdin.close()
        self._server.wait(timeout=DEADLINE)

    def run(self, name: str, flags: list[str], kill: Kill | None = None, **extra) -> Result:
        """Like the function `run`; `kill` may end the command before it does."""
        flags = [str(flag) for flag in flags]
        request = {"name": name, "flags": flags, "extra": extra, "kill": kill}
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        return Result(*json.loads(self._server.stdout.readline()))


def serve() -> None:
    """Answers the requests of a `Forks`, one JSON line each."""
    # Imported, not used: no device is touched before the fork.
    import sra_jax.jobs.encode
    import sra_jax.jobs.evaluate
    import sra_jax.jobs.probe
    import sra_jax.jobs.sample
    import sra_jax.jobs.train
    import sra_jax.training.tensorboard  # noqa: F401
    from sra_jax.cli.main import main

    for line in sys.stdin:
        request = json.loads(line)
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            kill = request["kill"] and Kill(*request["kill"])
            there = kill and _names(kill)
            child = os.fork()
            if not child:
                _become(main, request, out.fileno(), err.fileno())
            if kill:
                _kill(child, kill, there)
            _, status = os.waitpid(child, 0)
            out.seek(0), err.seek(0)
            answer = os.waitstatus_to_exitcode(status), out.read(), err.read()
        print(json.dumps(answer), flush=True)


def _names(kill: Kill) -> set[str]:
    """What is there of that which is waited for."""
    try:
        return {name for name in os.listdir(kill.directory) if re.fullmatch(kill.pattern, name)}
    except FileNotFoundError:
        return set()


def _kill(child: int, kill: Kill, there: set[str]) -> None:
    """Kills the child when it is time to, if it has not ended before."""
    while kill.pattern and not (there - _names(kill) if kill.gone else _names(kill) - there):
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT | os.WNOHANG):
            return
        time.sleep(0.0005)
    time.sleep(kill.delay)
    os.kill(child, kill.number)  # at worst a child that has ended, and was not waited for


def _become(main: Callable, request: dict, out: int, err: int) -> None:
    """Runs the command in this process, and ends it as the command asks."""
    code = 1
    try:
        os.dup2(out, 1), os.dup2(err, 2)
        os.environ.update(request["extra"])
        sys.argv = ["sra-jax", request["name"], *request["flags"]]
        main()
        code = 0
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve()
