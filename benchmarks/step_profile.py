"""Profile of a training step of SiT + SRA: its time by the kind of work.

  python benchmarks/step_profile.py
  python benchmarks/step_profile.py --model=XL/2 --batch=64 --attention=cudnn --remat=dots
  python benchmarks/step_profile.py --tiny

Traces a few steps that are started one after the other, as in training, and shows one of them.
Idle time is when the device runs no kernel between the first and the last one. If two streams of a
GPU or two threads of a CPU are busy at once, they share that time equally, so the shares add up to
the whole span. A GPU's kernels often belong to several kinds at once: a fusion has the kind of most
of the values that it computes, and a matrix product includes what is fused with it.

"Other" is the loss, embeddings, random draws, biases and their gradients; a table lists the longest
of it. Kernels that the compiled program does not explain are sorted by their names; a line says how
much time that is. CUDA graphs are off, because their kernels do not say where they come from.

The trace is deleted; `--keep` keeps it with the program's text. Needs jax, flax and optax only, and
takes half a minute on a GPU.
"""

import argparse
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import jax
import records
from published_models import TrainJob, alignment, transformer
from timing import describe_machine, spread, take_turns
from trace_kinds import (
    IDLE,
    KINDS,
    MEASURED,
    OTHER,
    Entry,
    Op,
    Profile,
    classify,
    read_events,
    tabulate,
)

STEPS = 3  # traced, and timed at once
NO_GRAPHS = "--xla_gpu_enable_command_buffer="  # nothing goes into CUDA graphs; CPUs ignore it
LONGEST = 15
NAME_LENGTH = 70


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints and records one step's kinds, its longest kernels, and what "other" is."""
    turn_off_graphs()
    options = parse_options(arguments)
    record, clock = records.start(options)
    print(describe_machine(), flush=True)
    settings = {name: getattr(options, name) for name in ("model", "batch", "attention", "remat")}
    record.note(machine=describe_machine(), **settings)
    job = make_job(options)
    print(f"compiled in {job.compile_seconds:.0f} s", flush=True)
    run(job)
    repeats = 5 if clock.left > 20 else 1
    steps = spread(take_turns({"steps": lambda: run(job)}, repeats)["steps"])
    wall = steps.scaled(1e3 / STEPS).median
    record.note(wall_ms=wall)
    profile = trace(job, options.keep)
    unknown = profile.unknown / profile.span
    record.note(span_ms=profile.span, unknown_share=unknown)
    show(profile, record)
    print(f"\na step takes {wall:.4g} ms without the trace, {profile.span:.4g} ms with it")
    print(f"{unknown:.1%} of it was sorted by the names of kernels alone")


def turn_off_graphs() -> None:
    """Sets XLA's flag, which must happen before JAX starts its devices."""
    flags = os.environ.get("XLA_FLAGS", "")
    if NO_GRAPHS not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {NO_GRAPHS}".strip()


def parse_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--model", default="XL/2")
    add("--batch", type=int, default=64)
    add("--side", type=int, default=32, help="of the latents; 32 is an image of 256 pixels")
    on_gpu = jax.default_backend() == "gpu"
    add("--attention", default="cudnn" if on_gpu else "xla", help="xla or cudnn")
    add("--remat", default="none", help="none, dots or full")
    add("--keep", type=Path, metavar="FOLDER", help="keep the trace and the program's text there")
    records.add_flags(parser)
    options = parser.parse_args(arguments)
    if options.tiny:
        options.model, options.batch, options.side = "tiny", 4, 8
    return options


def make_job(options: argparse.Namespace) -> TrainJob:
    """Compiles the step."""
    config = transformer(
        options.model, "sit", options.side, attention=options.attention, remat=options.remat
    )
    return TrainJob(config, alignment(options.model, "sit"), options.batch)


def run(job: TrainJob) -> None:
    """Makes STEPS steps, and waits for them."""
    for _ in range(STEPS):
        metrics = job.run(job.batch)
    jax.block_until_ready((job.state, metrics))


def trace(job: TrainJob, keep: Path | None) -> Profile:
    """The profile of one of STEPS traced steps."""
    settings = jax.profiler.ProfileOptions()
    settings.python_tracer_level = 0  # Python's calls would be most of the trace
    settings.enable_hlo_proto = False
    with tempfile.TemporaryDirectory() as scratch:
        folder = keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        ops = read_program(job, folder / "program.txt")
        with jax.profiler.trace(folder, profiler_options=settings):
            run(job)  # does not count: a GPU prepares every kernel when it is traced first
            with jax.profiler.TraceAnnotation(MEASURED):
                run(job)
        newest = max(folder.rglob("*.xplane.pb"), key=lambda file: file.stat().st_mtime)
        events = read_events(newest, jax.default_backend())
    return tabulate(events, ops, STEPS)


def read_program(job: TrainJob, file: Path) -> dict[str, Op]:
    """Classifies the instructions of the step, and writes its text to `file`. If the text cannot be
    read, it says so and returns none."""
    try:
        file.write_text(job.step.as_text() or "")
        return classify(file.read_text())
    except (ValueError, KeyError, RuntimeError) as error:
        print(f"cannot read the program's text, so the names of kernels must do: {error!r}")
        return {}


def show(profile: Profile, record: records.Record) -> None:
    """Prints and records the three tables."""
    kinds = record.table("kinds", ("kind", "ms", "share", "kernels"))
    for kind in (*KINDS, IDLE):
        ms, count = profile.of(kind)
        kinds.add(kind=kind, ms=ms, share=ms / profile.span, kernels=count)
    show_entries(record, "longest", profile.entries)
    show_entries(record, "other", [entry for entry in profile.entries if entry.kind == OTHER])


def show_entries(record: records.Record, name: str, entries: Sequence[Entry]) -> None:
    """A table of the first of `entries`."""
    table = record.table(name, ("name", "kind", "source", "ms", "count"))
    for entry in entries[:LONGEST]:
        table.add(**entry._replace(name=entry.name[:NAME_LENGTH])._asdict())


if __name__ == "__main__":
    main()
