"""Does self-alignment learn better, at equal steps and at equal time? On digits and on shapes.

  nice -n 10 taskset -c 0 python benchmarks/learning.py --out=runs/learning
  python benchmarks/learning.py --out=runs/learning --data=shapes_long --seeds=0
  python benchmarks/learning.py --out=runs/gpu --data=shapes_long --variants=sit,paper --seconds=90

The script trains every variant of the method from every seed, small models on small sets, seed by
seed. On the way it measures samples of the EMA: their Fréchet distance to real images, in the
features of a classifier trained on the set, and the share that the classifier finds to be of the
class asked for. At the end it fits linear probes to the features of each block.

The results of a run are a file in --out. Started again after an interruption, the script makes only
the missing runs. Then it prints the tables and draws the curves of all runs (--report does only
that). With --seconds the seeds have no end: runs are made as long as another one fits.

Runs of one seed have the same first parameters, batches, noise and times, so they are compared in
pairs. Plain SiT makes more steps: as many more as a step with alignment takes longer, so that both
train for the same time. The script times both kinds of step in turns before the first run.

The script needs jax, flax, optax and numpy. The digits also need scikit-learn, and the curves need
matplotlib.
"""

import argparse
import functools
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from learning_bench import Bench, real_images
from learning_recipes import SETTINGS, TINY, VARIANTS, Setting, make_recipe
from learning_report import compare_pairs, ends_of, read_runs, report
from learning_train import Trainer, time_steps
from records import Clock, Record, add_flags, start
from timing import describe_machine

from sra_jax.core.files import atomic_write
from sra_jax.core.progress import format_seconds

SEEDS = (0, 1, 2)
# Train steps in one dispatch. More would not be faster, and timing them would take longer.
CPU_CHUNK, ACCELERATOR_CHUNK = 10, 50
FACTS = ("data", "sit_ms", "paper_ms", "time_ratio", "floor", "accuracy")
RUNS = (
    "data",
    "variant",
    "seed",
    "steps",
    "frechet",
    "agreement",
    "loss",
    "probe_first",
    "probe_best",
    "ms_a_step",
    "seconds",
)
PAIRED = ("data", "compared", "measure", "mean", "least", "most", "seeds")


class Run(NamedTuple):
    """One run to make; its results are written to `path`."""

    setting: Setting
    variant: str
    seed: int
    path: Path


def main() -> None:
    """Makes the missing runs, and reports on all."""
    options = parse_options()
    record, clock = start(options)
    options.out.mkdir(parents=True, exist_ok=True)
    settings = [TINY] if options.tiny else [SETTINGS[name] for name in options.data]
    if not options.report:
        record.note(machine=describe_machine())
        runs = missing_runs(settings, options.variants, options.seeds, options.out)
        make_runs(runs, options.out, record, clock)
    for setting in settings:
        report(setting.name, options.out)
    paired = record.table("paired", PAIRED)
    for setting in settings:
        for row in compare_pairs(read_runs(setting.name, options.out)):
            paired.add(data=setting.name, **row)


def parse_options() -> argparse.Namespace:
    """The command's options; `seeds` may be endless."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    for name, known in (("data", SETTINGS), ("variants", VARIANTS)):
        default, parse = ",".join(known), _list_of(known)
        parser.add_argument(f"--{name}", type=parse, default=default, help="default: %(default)s")
    parser.add_argument(
        "--seeds", type=_integers, help="default: 0,1,2; with --seconds as many as fit"
    )
    parser.add_argument("--report", action="store_true", help="run nothing, report what there is")
    add_flags(parser)
    options = parser.parse_args()
    if options.seeds is None:
        endless = options.seconds is not None and not options.tiny
        options.seeds = itertools.count() if endless else SEEDS[:2] if options.tiny else SEEDS
    return options


def missing_runs(
    settings: list[Setting], variants: list[str], seeds: Iterable[int], out: Path
) -> Iterator[Run]:
    """The runs whose results are not in `out` yet, seed by seed."""
    wanted = [(s, v) for s in settings for v in variants if v in s.variants]
    for seed in seeds if wanted else ():
        for setting, variant in wanted:
            path = out / f"{setting.name}-{variant}-{seed}.json"
            if not path.exists():
                yield Run(setting, variant, seed, path)


def make_runs(runs: Iterable[Run], out: Path, record: Record, clock: Clock) -> None:
    """Makes `runs` until one might take longer than the clock has left."""
    studies: dict[str, Study] = {}
    facts, table = record.table("facts", FACTS), record.table("runs", RUNS)
    taken = []
    for run in runs:
        # The first run compiles programs that later runs share.
        slowest = max(taken[1:] or taken, default=0.0)
        if taken and (left := clock.left) < slowest:
            _tell(f"stopped: {left:.0f} s left, a run takes {slowest:.0f} s")
            return
        name = run.setting.name
        if name not in studies:
            studies[name] = Study(run.setting, out)
            facts.add(data=name, **studies[name].facts)
        _tell(f"{name}: {run.variant}, seed {run.seed}")
        began = time.perf_counter()
        found = studies[name].make(run.variant, run.seed)
        write_json(run.path, found)
        taken.append(time.perf_counter() - began)
        for end, row in ends_of(found).items():
            row |= {"ms_a_step": found["ms_a_step"], "seconds": taken[-1]}
            table.add(data=name, variant=run.variant, seed=run.seed, steps=end, **row)


class Study:
    """Data on the device, programs and measurements that the runs of one setting share.

    Attributes:
      facts: those of `Bench`, and the milliseconds of a step. An earlier call's facts are read from
        `out`, so that all runs of plain SiT there have the same length.
    """

    def __init__(self, setting: Setting, out: Path):
        self._setting, common = setting, out / f"{setting.name}.json"
        device = jax.devices()[0].device_kind
        earlier = json.loads(common.read_text()) if common.exists() else None
        # Files of the first edition do not name a device.
        if earlier and (timed_on := earlier.pop("device", device)) != device:
            sys.exit(
                f"error: {common} was timed on {timed_on}, this is {device}; choose another --out"
            )
        most = CPU_CHUNK if jax.default_backend() == "cpu" else ACCELERATOR_CHUNK
        self._chunk = setting.dispatched(most)
        real = real_images(setting)
        self._data = jnp.asarray(real.training.images), jnp.asarray(real.training.labels)
        # Compiles the programs of both while the classifier trains.
        with ThreadPoolExecutor() as pool:
            trainers = {name: pool.submit(self.trainer, name) for name in ("sit", "paper")}
            self._bench = Bench(setting, real)
        if earlier is None:
            trainers = {name: trainer.result() for name, trainer in trainers.items()}
            sit, paper = time_steps(trainers, setting.timed).values()
            steps = {"sit_ms": sit, "paper_ms": paper, "time_ratio": paper / sit}
            earlier = self._bench.facts | steps
            write_json(common, earlier | {"device": device})
        self.facts = earlier

    @functools.cache  # noqa: B019 - a study lives as long as the script
    def trainer(self, variant: str) -> Trainer:
        """The compiled program of a variant."""
        recipe = make_recipe(self._setting, variant, jax.default_backend())
        return Trainer(recipe, *self._data, self._chunk)

    def make(self, variant: str, seed: int) -> dict[str, Any]:
        """Trains `variant` from `seed`. Returns what was measured, as plain values."""
        setting, trainer = self._setting, self.trainer(variant)
        last = setting.steps
        if variant == "sit":  # whole dispatches
            longer = setting.steps * max(self.facts["time_ratio"], 1)
            last = self._chunk * round(longer / self._chunk)
        wanted = sorted({*range(setting.every, setting.steps, setting.every), setting.steps, last})
        state = jax.block_until_ready(trainer.init(seed))
        points, probe, done, training = [], {}, 0, 0.0
        began = time.perf_counter()
        for end in wanted:
            resumed, losses = time.perf_counter(), []
            for _ in range(done, end, self._chunk):
                state, found = trainer.advance(state, seed)
                losses.append(found)
            loss = float(np.mean(jax.device_get(losses)))  # since the last point
            done, training = end, training + time.perf_counter() - resumed
            points.append({"step": done, "loss": loss} | self._bench.score(state.ema["trunk"]))
            left = format_seconds((time.perf_counter() - began) / done * (last - done))
            told = "  ".join(f"{name} {value:.4g}" for name, value in points[-1].items())
            _tell(f"  {told}  {left} left")
            if done in (setting.steps, last):
                probe[str(done)] = self._bench.probe(state.ema["trunk"])
        return {"points": points, "probe": probe, "ms_a_step": 1e3 * training / last}


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Writes `value` so that `path` appears whole or not at all."""
    with atomic_write(path) as scratch:
        scratch.write_text(json.dumps(value, indent=1))


def _tell(line: str) -> None:
    """Prints progress, apart from the tables on the standard output."""
    print(line, file=sys.stderr, flush=True)


def _integers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _list_of(known: Iterable[str]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        names = text.split(",")
        if unknown := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r}, expected {', '.join(known)}")
        return names

    return parse


if __name__ == "__main__":
    main()
