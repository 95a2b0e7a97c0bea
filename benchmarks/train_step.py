"""How fast a training step is, what SRA adds to it, and what it takes to compile.

  python benchmarks/train_step.py
  python benchmarks/train_step.py --models=B/2,XL/2 --batches=64,256 --remats=none,dots \\
      --attentions=cudnn,xla
  python benchmarks/train_step.py --models=XL/2 --methods=sit,sit+sra --teacher_fractions=1,0.5
  python benchmarks/train_step.py --models=S/2 --methods=sit+sra --unrolls=1,12

On whatever device there is, with latents that are there already; needs jax, flax and optax only.
Every combination of the options is a line; the methods of one setting are timed in turns, so all
their states are on the device at once. "Over plain" compares with the same model without SRA: its
time, and its operations, the floor of SRA's cost. "Of matmul" is the share of the rate at which
this device multiplies two large matrices, "MFU" that of its data sheet. Memory is XLA's account of
one step, state included. Takes 5 minutes as it stands on two cores; on a GPU half a minute a line.
"""

import argparse
import itertools
from collections.abc import Iterator, Mapping
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from published_models import TrainJob, alignment, compute_dtype, transformer
from timing import Spread, describe_machine, listed, print_table, ratio, spread, take_turns

from sra_jax.distributed.hardware import GIB, chip_of

SETTING = ("model", "batch", "remat", "attention", "unroll", "method", "teacher")
FOUND = ("ms a step", "images/s", "TFLOP/s", "of matmul", "MFU", "GiB", "compile, s", "over plain")
MATRIX = {"cpu": 2048, "gpu": 8192, "tpu": 8192}  # the side of the large matrices


class Setting(NamedTuple):
    """What the methods that are timed in turns have in common."""

    model: str
    batch: int
    remat: str
    attention: str
    unroll: int


class Method(NamedTuple):
    """ "sit", "dit", "sit+sra" or "dit+sra", and the fraction of the batch that is aligned."""

    name: str
    teacher_fraction: float = 1.0


def main() -> None:
    """Prints each line as soon as it is known."""
    options = parse_options()
    print(describe_machine() + "\n")
    matmul = matmul_rate()
    print(f"large matrices: {matmul / 1e12:,.3g} TFLOP/s in {compute_dtype()}\n", flush=True)
    print_table((*SETTING, *FOUND), lines(options, matmul))


def parse_options() -> argparse.Namespace:
    """The flags; lists are separated by commas."""
    on_cpu = jax.default_backend() == "cpu"
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--models", type=listed(str), default=["S/2", "B/2"] if on_cpu else ["B/2", "XL/2"])
    add("--methods", type=listed(str), default=["sit", "sit+sra", "dit+sra"])
    add("--batches", type=listed(int), default=[4] if on_cpu else [256])
    add("--remats", type=listed(str), default=["none"], help="of none, dots, full")
    add("--attentions", type=listed(str), default=["xla"], help="of xla, cudnn")
    add("--unrolls", type=listed(int), default=[1], help="blocks in one turn of the scan")
    add("--teacher_fractions", type=listed(float), default=[1.0])
    add("--side", type=int, default=32, help="of the latents; 32 is an image of 256 pixels")
    add("--steps", type=int, default=1 if on_cpu else 10, help="in one timing")
    add("--repeats", type=int, default=5, help="timings, whose median, least and most are shown")
    return parser.parse_args()


def lines(options: argparse.Namespace, matmul: float) -> Iterator[list[str]]:
    """The table, a line at a time."""
    for fields in itertools.product(
        options.models, options.batches, options.remats, options.attentions, options.unrolls
    ):
        setting = Setting(*fields)
        jobs, refused = {}, {}
        for method in methods(options):
            try:
                jobs[method] = make_job(setting, method, options.side)
                run(jobs[method], 1)
            except jax.errors.JaxRuntimeError as error:  # most often for want of memory
                jobs.pop(method, None)
                refused[method] = str(error).splitlines()[0][:80]
        calls = {method: partial(run, job, options.steps) for method, job in jobs.items()}
        times = take_turns(calls, options.repeats)
        for method in methods(options):
            shown = [*map(str, setting), method.name, f"{method.teacher_fraction:g}"]
            if method in refused:
                yield [*shown, refused[method], *[""] * (len(FOUND) - 1)]
                continue
            step = spread(times[method]).scaled(1 / options.steps)
            found = describe(jobs[method], step, setting.batch, matmul)
            yield [*shown, *found, over_plain(method, jobs, times)]


def methods(options: argparse.Namespace) -> list[Method]:
    """What is timed in turns; without SRA no fraction makes a difference."""
    named = itertools.product(options.methods, options.teacher_fractions)
    return list(
        dict.fromkeys(Method(*each) if "+" in each[0] else Method(each[0]) for each in named)
    )


def make_job(
    setting: Setting, method: Method, side: int, options: Mapping[str, str] | None = None
) -> TrainJob:
    """Compiles one line's step, on latents of `side`; `options` are more of XLA's."""
    kind, plus, _ = method.name.partition("+")
    config = transformer(
        setting.model,
        kind,
        side,
        remat=setting.remat,
        attention=setting.attention,
        scan_unroll=setting.unroll,
    )
    sra = alignment(setting.model, kind, method.teacher_fraction) if plus else None
    return TrainJob(config, sra, setting.batch, options)


def run(job: TrainJob, steps: int) -> None:
    """Makes so many steps, and waits for them."""
    for _ in range(steps):
        metrics = job.run(job.batch)
    jax.block_until_ready((job.state, metrics))


def describe(job: TrainJob, step: Spread, batch: int, matmul: float) -> Iterator[str]:
    """What a line says of a job whose steps take the seconds `step`."""
    rate, chip = job.flops / step.median, chip_of(jax.devices()[0])
    yield f"{step.scaled(1e3):,.1f}"
    yield f"{step.over(batch):,.4g}"
    yield f"{rate / 1e12:,.3g}"
    yield f"{rate / matmul:.0%}"
    yield f"{rate / chip.flops:.1%}" if chip else ""
    yield f"{job.memory / GIB:.2f}"
    yield f"{job.compile_seconds:.1f}"


def over_plain(method: Method, jobs: dict[Method, TrainJob], times: dict[Method, list]) -> str:
    """Time and operations over those without SRA, where these were measured."""
    plain = Method(method.name.partition("+")[0])
    if method == plain or plain not in times:
        return ""
    operations = jobs[method].flops / jobs[plain].flops
    return f"{ratio(times[method], times[plain]):.2f} (operations {operations:.2f})"


def matmul_rate() -> float:
    """Operations a second, at best, of a product of two large square matrices."""
    side, queued = MATRIX[jax.default_backend()], 1 if jax.default_backend() == "cpu" else 10
    a = jax.random.normal(jax.random.key(0), (side, side), compute_dtype())
    product = jax.jit(jnp.dot)

    def multiply():
        for _ in range(queued):  # on an accelerator, starting one takes a part of its time
            result = product(a, a)
        result.block_until_ready()

    times = take_turns({"products": multiply}, repeats=20)
    return queued * 2 * side**3 / min(times["products"])


if __name__ == "__main__":
    main()
