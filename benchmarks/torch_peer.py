"""Speed of SiT + SRA in training and sampling: ours beside PyTorch's.

  python benchmarks/torch_peer.py --device=cpu
  python benchmarks/torch_peer.py --device=cpu --release=../SRA
  python benchmarks/torch_peer.py --device=cuda --contests=train --contestants=blocks,eager

Contestants: `ours`; SiT in plain PyTorch as torch_sit.py has it, `eager`, compiled block by block
(`blocks`) or in one graph (`whole`); and the method's authors' own code (`release`, from the clone
that --release names; it needs timm). The model is SiT + SRA at 256 pixels with random weights, in
bfloat16 on a GPU and float32 on a CPU. Sampling is guided by 1.8 in [0, 0.7]; "sde" is the paper's
sampler.

The contest `check` comes last: do PyTorch and ours compute the same on the same weights, in
float32? If not, the script ends with exit code 1.

On a CPU the contestants take turns. On a GPU their states do not fit beside each other, so each
runs by itself, as often as the time allows; if `timings` is 0, that was the first call only. There
`ours` and PyTorch want processes of their own, as neither gives memory back to the other (gpu.py
does that). `first_seconds` include compiling, which is short if a cache holds the program. PyTorch
is compiled without `max-autotune`. Takes 15 minutes on two cores.
"""

import argparse
import gc
import sys
import traceback
from pathlib import Path
from typing import Any

import jax
from contestants import Contestant, Work, make_contestant
from records import Clock, Record, Table, add_flags, one_line, start
from timing import describe_machine, listed, ratio, seconds, spread, take_turns

CONTESTS = ("train", "heun", "sde", "check")
CONTESTANTS = ("ours", "blocks", "eager", "release", "whole")
COLUMNS = (
    "contest",
    "contestant",
    "model",
    "batch",
    "steps",
    "timings",
    "seconds",
    "least",
    "most",
    "images_per_second",
    "tflops",
    "gib",
    "first_seconds",
    "time_over_ours",
    "refused",
)
SHORTEST = 5  # seconds that any contestant takes at the least


def main() -> None:
    """Prints each row as soon as it is known."""
    options = parse_options()
    record, clock = start(options)
    with_ours = "ours" in options.contestants
    machine = f"{describe_machine()}; {describe_torch()}" if with_ours else describe_torch()
    record.note(**{f"machine of {', '.join(options.contestants)}": machine})
    print(machine, flush=True)
    table, problem = record.table("peers", COLUMNS), None
    timed = [contest for contest in CONTESTS if contest in options.contests and contest != "check"]
    for contest in timed:
        compete(make_work(contest, options), options, record, table, clock)
    if timed and not table.rows:
        problem = "error: no contestant could take part; the rows say why"
    if "check" in options.contests:
        problem = check("tiny" if options.tiny else "S/2", options.device, record) or problem
    sys.exit(problem)


def parse_options() -> argparse.Namespace:
    """The flags; lists are separated by commas."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--device", choices=("cpu", "cuda"), help="default: what JAX, or PyTorch alone, runs on")
    add("--contests", type=listed(str), default=["train", "sde", "check"], help=", ".join(CONTESTS))
    add("--contestants", type=listed(str), default=list(CONTESTANTS), help=", ".join(CONTESTANTS))
    add("--release", type=Path, metavar="FOLDER", help="clone of the authors' code")
    add("--model", help="default: B/2 on a CPU, XL/2 on a GPU")
    add("--batch", type=int, help="default: 4 on a CPU, 64 on a GPU")
    add("--repeats", type=int, help="timings, whose median is shown; default: 5, or 3 on a GPU")
    add_flags(parser)
    options = parser.parse_args()
    for name, known in (("contests", CONTESTS), ("contestants", CONTESTANTS)):
        if unknown := set(getattr(options, name)) - set(known):
            parser.error(f"--{name}: unknown {', '.join(unknown)}, expected {', '.join(known)}")
    if options.release is None:
        options.contestants = [name for name in options.contestants if name != "release"]
    elif not (options.release / "SiT-SRA" / "train.py").is_file():
        parser.error(
            f"--release={options.release} has no SiT-SRA/train.py, expected a clone of SRA"
        )
    here = find_device("ours" in options.contestants or "check" in options.contests)
    options.device = options.device or here
    if options.device != here:
        parser.error(f"--device={options.device}, but the contestants run on {here}")
    if options.tiny and "sde" in options.contests:  # one sampler shows that samplers run
        options.contests = [name for name in options.contests if name != "heun"]
    on_cpu = options.device == "cpu"
    options.model = "tiny" if options.tiny else options.model or ("B/2" if on_cpu else "XL/2")
    options.batch = options.batch or (4 if on_cpu else 64)
    options.repeats = options.repeats or (1 if options.tiny else 5 if on_cpu else 3)
    return options


def check(model: str, device: str, record: Record) -> str | None:
    """Compares PyTorch with ours; says what is wrong, if anything is."""
    try:
        from peer_check import find_disagreement
    except ImportError as error:
        return f"error: cannot compare with PyTorch: {error}"
    return find_disagreement(model, device, record)


def find_device(jax_takes_part: bool) -> str:
    """The device of JAX if that takes part, otherwise the device of PyTorch: "cpu" or "cuda"."""
    if jax_takes_part:
        return {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
    try:
        import torch
    except ImportError as error:
        sys.exit(f"error: nobody can take part without PyTorch: {error}")
    return "cuda" if torch.cuda.is_available() else "cpu"


def describe_torch() -> str:
    """PyTorch's version, threads and device."""
    try:
        import torch
    except ImportError:
        return "no PyTorch"
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return f"PyTorch {torch.__version__} on {device}, {torch.get_num_threads()} threads"


def make_work(contest: str, options: argparse.Namespace) -> Work:
    """Steps of one timing: few on a CPU, the paper's samplers on a GPU."""
    on_cpu = options.device == "cpu"
    steps = {"train": 1, "sde": 10, "heun": 5} if on_cpu else {"train": 10, "sde": 250, "heun": 50}
    side = 8 if options.tiny else 32
    return Work(contest, options.model, side, options.batch, steps[contest], options.device)


def compete(
    work: Work, options: argparse.Namespace, record: Record, table: Table, clock: Clock
) -> None:
    """Adds a row for each contestant; the row of one that fails says why."""
    turns = work.device == "cpu"
    ours = [row for row in record.rows("peers", options.part) if is_ours(row, work)]
    entered: dict[str, tuple[Contestant, float]] = {}
    for name in [name for name in CONTESTANTS if name in options.contestants]:
        try:
            if clock.left < SHORTEST:
                raise TimeoutError("no time left")
            contestant = make_contestant(name, work, options.release)
            times = [seconds(contestant.call)]
            if turns:
                entered[name] = contestant, times[0]
                continue
            while len(times) <= options.repeats and clock.left > 1.2 * times[-1]:
                times.append(seconds(contestant.call))
        except Exception as error:  # a package is missing, or memory does not suffice
            traceback.print_exc()
            reason = f"{type(error).__name__}: {one_line(error)}"
            table.add(**describe(work, name), refused=reason)
        else:
            add_row(table, work, name, contestant, times[0], times[1:], ours)
        contestant = None
        free_memory()
    calls = {name: contestant.call for name, (contestant, _) in entered.items()}
    times = take_turns(calls, options.repeats) if calls else {}
    for name, (contestant, first) in entered.items():
        over = ratio(times[name], times["ours"]) if "ours" in times else None
        add_row(table, work, name, contestant, first, times[name], ours, over)


def is_ours(row: dict[str, Any], work: Work) -> bool:
    """True if `row` is the measurement of ours for the same work."""
    same = (work.contest, work.model, work.batch, "ours")
    found = tuple(row.get(key) for key in ("contest", "model", "batch", "contestant"))
    return found == same and "seconds" in row


def describe(work: Work, name: str) -> dict[str, Any]:
    """The columns that say what a row is of."""
    row = {"contest": work.contest, "contestant": name, "model": work.model, "batch": work.batch}
    return row | {"steps": work.steps}


def add_row(
    table: Table,
    work: Work,
    name: str,
    contestant: Contestant,
    first: float,
    times: list[float],
    ours: list[dict[str, Any]],
    over: float | None = None,
) -> None:
    """Adds what the `first` call and the `times` after it, in seconds, say of a contestant.

    Without any times the first call stands for them. `over` is its time over that of ours; if not
    given, the row of `ours` tells.
    """
    took = spread(times or [first])
    if over is None and ours:
        over = took.median / ours[-1]["seconds"]
    table.add(
        **describe(work, name),
        timings=len(times),
        seconds=took.median,
        least=took.least,
        most=took.most,
        images_per_second=work.images / took.median,
        tflops=work.flops / took.median / 1e12,
        gib=contestant.gib(),
        first_seconds=contestant.compile_seconds + first,
        time_over_ours=over,
    )


def free_memory() -> None:
    """Returns to the device what a contestant took of it."""
    gc.collect()
    if "torch" in sys.modules:
        import torch

        torch.compiler.reset()
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
