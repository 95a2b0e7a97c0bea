"""Measures this project on the GPU of this machine, in one call of eight minutes.

  bash benchmarks/gpu.sh                             # all parts but the profile
  bash benchmarks/gpu.sh --parts=train,profile --minutes=5
  bash benchmarks/gpu.sh --tiny --out=/tmp/gpu       # tries everything on a CPU, in two minutes

Parts, in this order:

  check    golden numbers and attention kernels on this device
  train    the train step of XL/2 and B/2: speed, memory, what SRA costs
  peer     the same step in plain PyTorch, checked against ours; with --peer, the authors' release
  sample   XL/2 by 250 SDE steps and by 50 of Heun's: ours and PyTorch
  learn    SiT against SiT + SRA on the drawn shapes, seed by seed
  profile  where the time of one step goes; only if --parts names it

Each part has a share of the time. It begins nothing that would take longer, and it is killed when
its share is over. Time that a part leaves goes to the next ones. Every row is printed and added to
FOLDER/gpu.json as soon as it is known, so a call that is cut short loses nothing. If a part fails,
it says so, and the next one starts. Exit code: 0 if every part was done or ran out of time, 1 if
one failed or measured nothing, 2 for bad input.

What XLA, its autotuner and PyTorch have compiled is kept in FOLDER/cache, and the results of the
part `learn` in FOLDER/learn. A second call with the same --out therefore gets further; it adds to
gpu.json. If FOLDER is $OUT, which may be emptied at each call, both are in a temporary folder
instead. JAX_COMPILATION_CACHE_DIR, TORCHINDUCTOR_CACHE_DIR and TRITON_CACHE_DIR can name other
places. Compile times in the tables are short if an earlier call or part has filled the cache.

Needs jax, flax, optax and numpy; the parts peer and sample need PyTorch too.
"""

import argparse
import contextlib
import datetime
import fcntl
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

from records import Record, read_calls, write_calls

BENCHMARKS = Path(__file__).parent
GRACE_SECONDS = 8  # kept back of a part's share, so that it ends by itself

DONE, LATE = "done", "stopped at its time"
ERROR = re.compile(r"error: |[\w.]+(Error|Exception|Exit)\b|[\w.]+: error:")

# XLA on a CPU compiles this much faster, and what it compiles is slower: only for --tiny.
QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"


class Command(NamedTuple):
    """A script with its flags, and its share of the time relative to the others'."""

    share: float
    line: str


PARTS = {
    "check": [Command(30, "gpu_check.py")],
    "train": [Command(110, "gpu_train.py")],
    "peer": [
        Command(55, "torch_peer.py --contests=train,check --contestants=ours"),
        Command(65, "torch_peer.py --contests=train --contestants=blocks,eager,release"),
    ],
    "sample": [
        Command(70, "torch_peer.py --contests=heun,sde --contestants=ours"),
        Command(65, "torch_peer.py --contests=heun,sde --contestants=blocks"),
    ],
    "learn": [Command(80, "learning.py --data=shapes_long --variants=sit,paper")],
    "profile": [Command(60, "step_profile.py")],
}
DEFAULT_PARTS = tuple(name for name in PARTS if name != "profile")


def main() -> None:
    """Runs the parts that are asked for, each for its share of the time."""
    options = parse_options()
    file = options.out / "gpu.json"
    add_call(file)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))  # ends the script too
    end = time.monotonic() + 60 * options.minutes
    outcomes = {}
    for position, name in enumerate(options.parts):
        commands = [command for each in options.parts[position:] for command in PARTS[each]]
        seconds = share_of(PARTS[name], commands, end)
        print(f"\n## {name} ({seconds:.0f} s at most)\n", flush=True)
        record = Record(file, name)
        record.note(outcome="cut short")  # unless it is replaced below
        started = time.monotonic()
        outcomes[name] = run_part(name, seconds, file, options)
        if outcomes[name] == LATE and not record.has_rows():
            outcomes[name] = f"failed: {LATE}, with nothing measured"
        took = time.monotonic() - started
        record.note(outcome=outcomes[name], seconds=took)
        print(f"\n{name}: {outcomes[name]}, {took:.0f} s", flush=True)
    print(f"\nall numbers: {file}", flush=True)
    sys.exit(any(outcome.startswith("failed") for outcome in outcomes.values()))


def parse_options() -> argparse.Namespace:
    """The flags, checked."""
    parser = argparse.ArgumentParser(
        prog="gpu.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--parts", default=",".join(DEFAULT_PARTS), help="default: %(default)s")
    add("--minutes", type=float, default=8, help="of the whole call; default: %(default)s")
    add("--out", default=os.environ.get("OUT"), metavar="FOLDER", help="default: $OUT")
    add("--tiny", action="store_true", help="the smallest sizes, to try it on a CPU")
    add("--peer", type=Path, metavar="FOLDER", help="a clone of github.com/vvvvvjdy/SRA")
    options = parser.parse_args()
    named = options.parts.split(",")
    if unknown := [name for name in named if name not in PARTS]:
        parser.error(f"--parts: unknown {unknown[0]!r}, expected of {', '.join(PARTS)}")
    options.parts = [name for name in PARTS if name in named]
    # $OUT may be emptied and collected at every call, so nothing but the numbers goes there.
    temporary = Path(tempfile.gettempdir(), "sra_jax_gpu")
    options.scratch = Path(options.out) if options.out != os.environ.get("OUT") else temporary
    if not options.out:
        parser.error("--out=FOLDER says where the numbers go; it is needed, as $OUT is not set")
    if not 0 < options.minutes < float("inf"):
        parser.error(f"--minutes={options.minutes:g}, expected a number above 0")
    if options.peer and not (options.peer / "SiT-SRA" / "train.py").is_file():
        parser.error(f"--peer={options.peer} has no SiT-SRA/train.py, expected a clone of SRA")
    options.out = Path(options.out)
    return options


def share_of(some: list[Command], all_left: list[Command], end: float) -> float:
    """Seconds for `some` of the commands that are to be done by `end`."""
    total = sum(command.share for command in all_left)
    return (end - time.monotonic()) * sum(command.share for command in some) / total


def add_call(file: Path) -> None:
    """Adds an empty call to `file`, whose folder it locks until the process ends.

    If that cannot be, it says why in one line and ends the process with 2.
    """
    call = {
        "command": shlex.join(["gpu.sh", *sys.argv[1:]]),
        "began": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": read_commit(),
        "parts": {},
    }
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        fcntl.flock(os.open(file.parent, os.O_RDONLY), fcntl.LOCK_EX | fcntl.LOCK_NB)
        write_calls(file, [*read_calls(file), call])
    except BlockingIOError:
        refuse(f"another call is writing to {file.parent}; wait for it, or choose another --out")
    except (ValueError, OSError) as error:
        refuse(f"cannot write {file}: {error}")


def refuse(reason: str) -> None:
    print(f"error: {reason}", file=sys.stderr)
    sys.exit(2)


def read_commit() -> str | None:
    """The commit of this code; None without git."""
    command = ["git", "-C", str(BENCHMARKS), "describe", "--always", "--dirty"]
    with contextlib.suppress(OSError):
        return subprocess.run(command, capture_output=True, text=True).stdout.strip() or None
    return None


def run_part(name: str, seconds: float, file: Path, options: argparse.Namespace) -> str:
    """Runs the commands of a part for `seconds` at most; returns how it went, in a few words."""
    end = time.monotonic() + seconds
    failures, is_late = [], False
    for position, command in enumerate(PARTS[name]):
        left = share_of([command], PARTS[name][position:], end)
        script, *flags = command.line.split()
        flags += [f"--record={file}", f"--part={name}", f"--seconds={left - GRACE_SECONDS:.0f}"]
        flags += ["--tiny"] if options.tiny else []
        if script == "torch_peer.py" and options.peer:
            flags += [f"--release={options.peer.resolve()}"]
        if script == "learning.py":
            flags += [f"--out={options.scratch / 'learn'}"]
        outcome = run_script(script, flags, left, environment(command.line, options))
        is_late |= outcome == LATE
        failures += [outcome] if outcome not in (DONE, LATE) else []
    if failures:
        return f"failed: {'; '.join(failures)}"
    return LATE if is_late else DONE


def environment(command: str, options: argparse.Namespace) -> dict[str, str]:
    """The environment of a script: where it finds the package and the caches, and what memory JAX
    may take."""
    cache = options.scratch.resolve() / "cache"
    caches = {
        "JAX_COMPILATION_CACHE_DIR": str(cache / "xla"),  # the autotuner's results lie in it too
        "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"),
        "TRITON_CACHE_DIR": str(cache / "triton"),
    }
    paths = [str(BENCHMARKS.parent), os.environ.get("PYTHONPATH", "")]
    beside = {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),  # the package need not be installed
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_TRACEBACK_FILTERING": "off",  # its notes would stand where the reason is looked for
        "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92",
    }
    if command.startswith("torch_peer.py"):
        if "ours" in command:
            beside["XLA_PYTHON_CLIENT_MEM_FRACTION"] = "0.8"  # PyTorch checks it in this process
        else:
            beside["JAX_PLATFORMS"] = "cpu"  # leaves the GPU's memory to PyTorch
    if options.tiny:
        beside["XLA_FLAGS"] = f"{QUICK} {os.environ.get('XLA_FLAGS', '')}".strip()
    return caches | os.environ | beside


def run_script(script: str, flags: list[str], seconds: float, environment: dict[str, str]) -> str:
    """Runs one script, and kills it with all that it has started after `seconds`.

    Returns DONE, LATE, or why it failed: the last line on stderr that names an error.
    """
    with subprocess.Popen(
        [sys.executable, "-u", str(BENCHMARKS / script), *flags],
        env=environment,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        process_group=0,
    ) as process:
        last = ["no reason given"]

        def relay():
            for line in process.stderr:
                sys.stderr.write(line)
                last[0] = line.strip() if ERROR.match(line) else last[0]

        reader = threading.Thread(target=relay, daemon=True)
        reader.start()
        try:
            process.wait(timeout=max(seconds, 0))
        except subprocess.TimeoutExpired:
            return LATE
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            reader.join(timeout=5)
    if process.returncode < 0:
        return f"{script}: killed by {signal.Signals(-process.returncode).name}"
    return DONE if process.returncode == 0 else f"{script} ({process.returncode}): {last[0][:500]}"


if __name__ == "__main__":
    main()
