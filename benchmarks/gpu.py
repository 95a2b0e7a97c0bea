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
one failed.

FOLDER/cache keeps what XLA, its autotuner and PyTorch have compiled. A second call with the same
FOLDER therefore gets further; it adds to gpu.json. If FOLDER is emptied between calls, set
JAX_COMPILATION_CACHE_DIR to a folder that is not. Needs jax, flax, optax and numpy; the parts peer
and sample need PyTorch too.
"""

import argparse
import contextlib
import datetime
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

from records import Record, read_calls, write_calls

BENCHMARKS = Path(__file__).parent
GRACE_SECONDS = 8  # kept back of a part's share, so that it ends by itself

DONE, LATE = "done", "stopped at its time"

# XLA on a CPU compiles this much faster, and what it compiles is slower: only for --tiny.
QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"


class Part(NamedTuple):
    """The commands of a part, and its share of the time relative to the others'."""

    share: float
    commands: tuple[str, ...]


PARTS = {
    "check": Part(35, ("gpu_check.py",)),
    "train": Part(140, ("gpu_train.py",)),
    "peer": Part(
        125,
        (
            "torch_peer.py --contests=check,train --contestants=ours",
            "torch_peer.py --contests=train --contestants=blocks,eager,release,whole",
        ),
    ),
    "sample": Part(
        90,
        (
            "torch_peer.py --contests=sde,heun --contestants=ours",
            "torch_peer.py --contests=sde,heun --contestants=blocks",
        ),
    ),
    "learn": Part(90, ("learning.py --data=shapes_long --variants=sit,paper",)),
    "profile": Part(60, ("step_profile.py",)),
}
DEFAULT_PARTS = tuple(name for name in PARTS if name != "profile")


def main() -> None:
    """Runs the parts that are asked for, each for its share of the time."""
    options = parse_options()
    file = options.out / "gpu.json"
    add_call(file)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # which ends the part's processes too
    end = time.monotonic() + 60 * options.minutes
    outcomes = {}
    for position, name in enumerate(options.parts):
        shares = [PARTS[each].share for each in options.parts[position:]]
        seconds = (end - time.monotonic()) * shares[0] / sum(shares)
        print(f"\n## {name} ({seconds:.0f} s at most)\n", flush=True)
        record = Record(file, name)
        record.note(outcome="cut short")  # unless it is replaced below
        started = time.monotonic()
        outcomes[name] = run_part(name, seconds, file, options)
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
    out = os.environ.get("OUT")
    add("--out", type=Path, default=out, metavar="FOLDER", help="default: $OUT")
    add("--tiny", action="store_true", help="the smallest sizes, to try it on a CPU")
    add("--peer", type=Path, metavar="FOLDER", help="a clone of github.com/vvvvvjdy/SRA")
    options = parser.parse_args()
    named = options.parts.split(",")
    if unknown := [name for name in named if name not in PARTS]:
        parser.error(f"--parts: unknown {unknown[0]!r}, expected of {', '.join(PARTS)}")
    options.parts = [name for name in PARTS if name in named]
    if not options.out:
        parser.error("--out=FOLDER says where the numbers go; it is needed, as $OUT is not set")
    if not 0 < options.minutes < float("inf"):
        parser.error(f"--minutes={options.minutes:g}, expected a number above 0")
    if options.peer and not (options.peer / "SiT-SRA" / "train.py").is_file():
        parser.error(f"--peer={options.peer} has no SiT-SRA/train.py, expected a clone of SRA")
    return options


def add_call(file: Path) -> None:
    """Adds an empty call to `file`; ends the process with 2 if that cannot be."""
    try:
        calls = read_calls(file)
        file.parent.mkdir(parents=True, exist_ok=True)
        began = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        write_calls(file, [*calls, {"command": shlex.join(sys.argv), "began": began, "parts": {}}])
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def run_part(name: str, seconds: float, file: Path, options: argparse.Namespace) -> str:
    """Runs the commands of a part for `seconds` at most; returns how it went, in a few words."""
    end = time.monotonic() + seconds
    failures, is_late = [], False
    for position, command in enumerate(PARTS[name].commands):
        left = (end - time.monotonic()) / (len(PARTS[name].commands) - position)
        script, *flags = command.split()
        flags += [f"--record={file}", f"--part={name}", f"--seconds={left - GRACE_SECONDS:.0f}"]
        flags += ["--tiny"] if options.tiny else []
        if script == "torch_peer.py" and options.peer:
            flags += [f"--release={options.peer.resolve()}"]
        if script == "learning.py":
            flags += [f"--out={options.out / ('learn-tiny' if options.tiny else 'learn')}"]
        outcome = run_script(script, flags, left, environment(command, options))
        is_late |= outcome == LATE
        failures += [outcome] if outcome not in (DONE, LATE) else []
    if failures:
        return f"failed: {'; '.join(failures)}"
    return LATE if is_late else DONE


def environment(command: str, options: argparse.Namespace) -> dict[str, str]:
    """The environment of a script: where it finds the package and the caches, and what memory JAX
    may take."""
    cache = options.out.resolve() / "cache"
    xla = os.environ.get("JAX_COMPILATION_CACHE_DIR", str(cache / "xla"))
    paths = [str(BENCHMARKS.parent), os.environ.get("PYTHONPATH", "")]
    beside = {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),  # the package need not be installed
        "JAX_COMPILATION_CACHE_DIR": xla,  # the autotuner's results lie in it too
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"),
        "TRITON_CACHE_DIR": str(cache / "triton"),
        "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92",
    }
    if command.startswith("torch_peer.py"):
        if "ours" in command:
            beside["XLA_PYTHON_CLIENT_MEM_FRACTION"] = "0.8"  # PyTorch checks it in this process
        else:
            beside["JAX_PLATFORMS"] = "cpu"  # leaves the GPU's memory to PyTorch
    if options.tiny:
        beside["XLA_FLAGS"] = f"{QUICK} {os.environ.get('XLA_FLAGS', '')}".strip()
    return os.environ | beside


def run_script(script: str, flags: list[str], seconds: float, environment: dict[str, str]) -> str:
    """Runs one script, and kills it with all that it has started after `seconds`.

    Returns DONE, LATE, or why it failed: its last line on stderr.
    """
    command = [sys.executable, "-u", str(BENCHMARKS / script), *flags]
    with subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        last = [""]

        def relay():
            for line in process.stderr:
                sys.stderr.write(line)
                last[0] = line.strip() or last[0]

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
    return DONE if process.returncode == 0 else f"{script} ({process.returncode}): {last[0][:200]}"


if __name__ == "__main__":
    main()
