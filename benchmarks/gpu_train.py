"""The speed of the train step on an accelerator, the most telling settings first.

  python benchmarks/gpu_train.py [--seconds=150]

SiT-XL/2 + SRA, SiT-XL/2 and SiT-B/2 + SRA at 256 pixels, in bfloat16: images/s, TFLOP/s of useful
operations, their share of the rate at which this device multiplies large matrices, and memory by
XLA's account, state included. `aligned` is the fraction of the batch that SRA aligns. A batch that
does not fit is refused in its row. With --seconds no row is begun that would take longer than what
is left, so the list goes as far as it can. train_step.py measures any other setting.
"""

import argparse
import itertools
import traceback
from functools import partial
from typing import Any, NamedTuple

import jax
from published_models import TrainJob, compute_dtype
from records import Clock, Record, Table, add_flags, one_line, start
from timing import Spread, describe_machine, seconds, spread, take_turns
from train_step import Method, Setting, make_job, matmul_rate, run

from sra_jax.distributed.hardware import GIB, chip_of
from sra_jax.models.dit import ATTENTION

COLUMNS = (
    "model",
    "method",
    "aligned",
    "batch",
    "attention",
    "remat",
    "options",
    "ms",
    "least_ms",
    "most_ms",
    "images_per_second",
    "tflops",
    "of_matmul",
    "mfu",
    "gib",
    "compile_seconds",
    "refused",
)
COST_COLUMNS = (*COLUMNS[:7], "time_over_plain", "operations_over_plain")


class Line(NamedTuple):
    """One row to measure; `options` are more of XLA's than training gives it."""

    setting: Setting
    method: Method
    options: tuple[tuple[str, str], ...] = ()


SRA, HALF, PLAIN = Method("sit+sra"), Method("sit+sra", 0.5), Method("sit")
# XLA fuses a product with the slice of the scan's buffer that takes its result. If the result is
# also used at once, the product is computed twice (RESULTS.md, On a GPU).
NO_SLICE_FUSION = (("xla_gpu_enable_dynamic_slice_fusion", "False"),)

TIMING_SECONDS, TINY_SECONDS = 0.7, 0.05  # of one timing, if a step does not take longer
REPEATS = 3


def main() -> None:
    """Prints each row as soon as it is known."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_flags(parser)
    options = parser.parse_args()
    record, clock = start(options)
    record.note(machine=describe_machine())
    print(describe_machine(), flush=True)
    matmul = matmul_rate()
    record.note(matmul_tflops=matmul / 1e12)
    print(f"large matrices: {matmul / 1e12:,.4g} TFLOP/s in {compute_dtype()}", flush=True)
    measure(lines(options.tiny), options.tiny, matmul, record, clock)


def lines(tiny: bool) -> list[Line]:
    """The rows, the most telling first: the headline, SRA's overhead, then what else changes it."""
    if tiny:
        return [Line(Setting("tiny", 4, "none", "xla", 1), method) for method in (SRA, PLAIN)]

    def line(model, batch, method, attention="cudnn", remat="none", options=()) -> Line:
        return Line(Setting(model, batch, remat, attention, 1), method, options)

    first = [line("XL/2", 64, SRA), line("XL/2", 64, PLAIN)]
    first += [line("XL/2", 64, SRA, options=NO_SLICE_FUSION), line("XL/2", 64, HALF)]
    first += [line("B/2", 256, method) for method in (SRA, PLAIN)]
    first += [line("XL/2", 64, SRA, attention="xla"), line("XL/2", 64, SRA, remat="dots")]
    first += [line("XL/2", 128, SRA), line("XL/2", 256, SRA), line("XL/2", 256, SRA, remat="dots")]
    grid = itertools.product((64, 128, 256, 32), (SRA, PLAIN), ATTENTION[::-1], ("none", "dots"))
    rest = [line("XL/2", *fields) for fields in grid]
    rest += [line("B/2", batch, SRA, attention) for attention in ATTENTION for batch in (64, 128)]
    return list(dict.fromkeys(first + rest))


def measure(lines: list[Line], tiny: bool, matmul: float, record: Record, clock: Clock) -> None:
    """Adds a row for each line, as far as the time goes, and what SRA costs as soon as its row and
    that of the plain model are known."""
    steps, costs = record.table("steps", COLUMNS), record.table("cost of SRA", COST_COLUMNS)
    known: dict[Line, tuple[float, int]] = {}  # seconds and operations of a step
    refused: list[Line] = []
    took = 0.0  # by the row before
    for number, line in enumerate(lines):
        if any(is_smaller(other, line) for other in refused):
            continue
        before = clock.left
        if before < 1.2 * took:
            print(f"\nthe time is up; {len(lines) - number} rows were not begun", flush=True)
            record.note(not_begun=len(lines) - number)
            return
        row = describe(line)
        try:
            job = make_job(line.setting, line.method, 8 if tiny else 32, dict(line.options))
            step = time_step(job, TINY_SECONDS if tiny else TIMING_SECONDS)
        except (RuntimeError, ValueError) as error:  # for want of memory, or of cuDNN
            traceback.print_exc()
            refused.append(line)
            steps.add(**row, refused=one_line(error))
        else:
            steps.add(**row, **found(job, step, line.setting.batch, matmul))
            known[line] = step.median, job.flops
            add_costs(costs, line, known)
        job = None  # returns its memory before the next one takes as much
        took = before - clock.left


def time_step(job: TrainJob, timing: float) -> Spread:
    """Seconds of a step, median, least and most, from timings of `timing` seconds."""
    run(job, 1)
    once = seconds(partial(run, job, 1))
    steps = max(1, round(timing / once))
    times = take_turns({"steps": partial(run, job, steps)}, REPEATS)["steps"]
    return spread(times).scaled(1 / steps)


def describe(line: Line) -> dict[str, Any]:
    """The columns that say what a row is of."""
    setting, method, options = line
    return {
        "model": setting.model,
        "method": method.name,
        "aligned": method.teacher_fraction if "+" in method.name else None,
        "batch": setting.batch,
        "attention": setting.attention,
        "remat": setting.remat,
        "options": " ".join(f"{name}={value}" for name, value in options) or None,
    }


def found(job: TrainJob, step: Spread, batch: int, matmul: float) -> dict[str, Any]:
    """The columns that say what was measured."""
    rate, chip = job.flops / step.median, chip_of(jax.devices()[0])
    return {
        "ms": 1e3 * step.median,
        "least_ms": 1e3 * step.least,
        "most_ms": 1e3 * step.most,
        "images_per_second": batch / step.median,
        "tflops": rate / 1e12,
        "of_matmul": rate / matmul,
        "mfu": rate / chip.flops if chip else None,
        "gib": job.memory / GIB,
        "compile_seconds": job.compile_seconds,
    }


def add_costs(table: Table, line: Line, known: dict[Line, tuple[float, int]]) -> None:
    """Adds what SRA costs in the setting of `line`, which was measured last."""
    plain = line._replace(method=PLAIN)
    if plain not in known:
        return
    aligned = [SRA, HALF] if line == plain else [line.method]
    for method in aligned:
        if (other := line._replace(method=method)) in known:
            time, flops = (a / b for a, b in zip(known[other], known[plain], strict=True))
            table.add(**describe(other), time_over_plain=time, operations_over_plain=flops)


def is_smaller(other: Line, line: Line) -> bool:
    """True if `other` differs from `line` only by a smaller batch, or not at all."""
    of_one_batch = (each._replace(setting=each.setting._replace(batch=0)) for each in (other, line))
    return len(set(of_one_batch)) == 1 and other.setting.batch <= line.setting.batch


if __name__ == "__main__":
    main()
