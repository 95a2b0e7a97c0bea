"""Whether training ever waits for its input: reading, copying, stepping, apart and together.

  python benchmarks/input.py [--model=S/8] [--batch=16] [--folder=DIR]

Reads the records that benchmarks/reader.py writes. "Apart" is what each takes alone for one batch;
"one after another" reads, copies and steps in turn; "overlapped" is the trainer's own loop, whose
share of time spent waiting for a batch, once warm, is to stay below 1 %. Takes two minutes on two
cores, where the step competes with the reader for them; on an accelerator it does not.
"""

import argparse
import tempfile
from pathlib import Path
from types import SimpleNamespace

import jax
from published_models import TrainJob, alignment, transformer
from reader import write
from timing import describe_machine, print_table, spread, take_turns

from sra_jax.checkpoints.store import CheckpointStore
from sra_jax.data.pipeline import batches, prefetch
from sra_jax.data.records import LatentSource, open_records
from sra_jax.training.loop import Hooks, run_steps
from sra_jax.training.preemption import StopSignals
from sra_jax.training.reporter import Reporter, StepCost

STEPS = 10  # in each report of the loop


def main() -> None:
    """Writes the records, measures and prints two tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="S/8")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", help="where to put the temporary directory")
    options = parser.parse_args()
    print(describe_machine() + "\n")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = Path(folder) / "latents"
        write(path)
        measure(open_records(path), options, Path(folder))


def measure(source: LatentSource, options: argparse.Namespace, folder: Path) -> None:
    """Times the parts in turns, then the loop."""
    job = TrainJob(
        transformer(options.model, "sit"), alignment(options.model, "sit"), options.batch
    )
    rows = [
        (name, f"{spread(times).scaled(1e3):,.2f}")
        for name, times in time_parts(source, job, options.batch, options.repeats).items()
    ]
    warm = train(source, job, options.batch, options.repeats, folder)
    overlapped = spread([report["step_seconds"] for report in warm])
    rows.append(("overlapped, in the trainer's loop", f"{overlapped.scaled(1e3):,.2f}"))
    print_table((f"batch of {options.batch}, {options.model}", "ms"), rows)
    share = spread([100 * report["input_wait_share"] for report in warm])
    print(f"waiting for input, once warm: {share:.3f} % of the time (goal: below 1 %)")


def time_parts(
    source: LatentSource, job: TrainJob, size: int, repeats: int
) -> dict[str, list[float]]:
    """Seconds of each part, and of all one after another."""
    read = batches(source, size, 0, 0)
    held = next(read)

    def copy(batch):
        return jax.block_until_ready(jax.device_put(batch))

    def step(batch):
        jax.block_until_ready((job.run(batch), job.state))

    def read_now():  # a new reader has read nothing ahead
        fresh = batches(source, size, 0, 0)
        next(fresh)
        fresh.close()

    try:
        return take_turns(
            {
                "read, nothing ahead": read_now,
                "copy": lambda: copy(held),
                "step": lambda: step(job.batch),
                "one after another": lambda: step(copy(next(read))),
            },
            repeats,
        )
    finally:
        read.close()


def train(
    source: LatentSource, job: TrainJob, size: int, repeats: int, folder: Path
) -> list[dict[str, float]]:
    """What the trainer's loop reports, without the first report, in which it warms up."""
    reports: list[dict[str, float]] = []
    writer = SimpleNamespace(write_scalars=lambda _, scalars: reports.append(scalars))
    steps = range(STEPS * (1 + repeats))
    reporter = Reporter(writer, 0, steps.stop, STEPS, StepCost(size, job.flops // size, 1, None))
    with CheckpointStore(folder) as store, StopSignals() as stop:
        run_steps(
            job.step,
            job.state,
            prefetch(batches(source, size, 0, 0), jax.device_put),
            steps,
            steps.stop,
            # Saves nothing, and shows nothing.
            Hooks(store, lambda *_: None, lambda *_: 0.0, reporter, stop),
        )
    return reports[1:]


if __name__ == "__main__":
    main()
