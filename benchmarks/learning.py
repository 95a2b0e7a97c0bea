"""Does self-alignment learn better, at equal steps and at equal time? On digits and on shapes.

  nice -n 10 taskset -c 0 python benchmarks/learning.py --out=runs/learning
  python benchmarks/learning.py --out=runs/learning --data=shapes_long --seeds=0

Trains every variant of the method from every seed, small models on small sets, and measures them on
the way: Fréchet distance to real images in the features of a classifier trained on the set, and the
share of samples that it finds to be of the class asked for (500 or 1000 of the EMA, unguided, by
Heun's method); at the end linear probes by block. A run's results are a file in --out; run again
after an interruption, the script makes only the runs that are missing, then prints the tables and
draws the curves of all there are (--report: only that).

Runs of one seed start from the same parameters and see the same batches, noise and times: they are
to be compared in pairs. SiT alone goes on after the common number of steps, for as long as a step
with alignment takes longer, measured in turns before.
"""

import argparse
import dataclasses
import importlib.util
import itertools
import json
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from learning_report import report

from sra_jax.codecs import PixelCodec
from sra_jax.data.digits import load_digits
from sra_jax.data.embedded import EMBEDDED, ensure_embedded
from sra_jax.data.latents import LatentSource, open_latents
from sra_jax.data.pipeline import batches, prefetch
from sra_jax.data.shapes import TRAINING, draw_shapes
from sra_jax.evaluation.classifier import train_classifier
from sra_jax.evaluation.statistics import fit_gaussian, frechet_distance
from sra_jax.experiment import Experiment
from sra_jax.files import replacing
from sra_jax.parallel import make_mesh
from sra_jax.program import TrainProgram, make_program
from sra_jax.progress import format_seconds
from sra_jax.randomness import stream_key
from sra_jax.sampling.generate import make_sampler, sample_chunks
from sra_jax.sampling.guidance import Guidance
from sra_jax.sampling.solvers import make_steps
from sra_jax.sra import WeightSchedule

CONFIGS = Path(__file__).parents[1] / "configs"
TIMED_STEPS = 80
PROBE_TIME = 0.3
# What each variant changes in the config's section sra.
VARIANTS = {
    "sit": lambda sra: {"weight": 0.0},
    "paper": lambda sra: {},
    "same_block": lambda sra: {"teacher_block": sra["student_block"]},
    "no_gap": lambda sra: {"gap_max": 0.0},
    "no_head": lambda sra: {"head": False},
    "weight_0.1": lambda sra: {"weight": 0.1},
    "weight_0.3": lambda sra: {"weight": 0.3},
    "weight_0.4": lambda sra: {"weight": 0.4},
    "fraction_0.5": lambda sra: {"teacher_fraction": 0.5},
    "decay": lambda sra: {},  # of the weight: see `make_experiment`
}


@dataclasses.dataclass(frozen=True)
class Setting:
    """The size of the runs on the data set of configs/`data`.py.

    Measured are `samples` images every `every` steps; probes are fitted to `fitted` images and
    tested on `tested` others. `classifier_steps` trains the classifier that measures.
    """

    name: str
    data: str
    steps: int
    every: int
    variants: tuple[str, ...] = tuple(VARIANTS)
    samples: int = 1000
    solver_steps: int = 16
    fitted: int = 1200
    tested: int = 597
    classifier_steps: int = 1000
    changes: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)


SHAPES = Setting(
    name="shapes",
    data="shapes",
    steps=2000,
    every=500,
    samples=500,
    fitted=4000,
    tested=1000,
    classifier_steps=3000,
)
LONG_SHAPES = dataclasses.replace(
    SHAPES, name="shapes_long", steps=6000, every=1000, variants=("sit", "paper")
)
SETTINGS = {
    setting.name: setting
    for setting in (Setting("digits", "digits", steps=1000, every=250), SHAPES, LONG_SHAPES)
}


class Images(NamedTuple):
    """Images uint8 [N, H, W, C] and labels int32 [N]."""

    images: np.ndarray
    labels: np.ndarray

    def rows(self, first: int, last: int) -> "Images":
        return Images(self.images[first:last], self.labels[first:last])


def main() -> None:
    """Makes the missing runs, and reports on all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    for name, known in (("data", SETTINGS), ("variants", VARIANTS)):
        default, parse = ",".join(known), _list_of(known)
        parser.add_argument(f"--{name}", type=parse, default=default, help="default: %(default)s")
    parser.add_argument("--seeds", type=_integers, default="0,1,2", help="default: %(default)s")
    parser.add_argument("--report", action="store_true", help="run nothing, report what there is")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if not options.report:
        # The main question first, on both sets.
        main_variants = [v for v in options.variants if v in ("sit", "paper")]
        others = [v for v in options.variants if v not in main_variants]
        for variants in (main_variants, others):
            for name in options.data:
                setting = SETTINGS[name]
                made = [v for v in variants if v in setting.variants]
                run_all(setting, made, options.seeds, options.out)
    for name in options.data:
        report(name, options.out)


def run_all(setting: Setting, variants: list[str], seeds: list[int], out: Path) -> None:
    """Makes the runs of `variants` x `seeds` whose results are not in `out` yet."""
    missing = [
        (variant, seed, path)
        for seed, variant in itertools.product(seeds, variants)
        if not (path := out / f"{setting.name}-{variant}-{seed}.json").exists()
    ]
    if not missing:
        return
    data = ensure_embedded(f"embedded:{setting.data}", out / "data")
    source, bench = open_latents(data), Bench(setting)
    common = out / f"{setting.name}.json"
    if not common.exists():
        write_json(common, bench.facts | time_steps(setting, source))
    ratio = json.loads(common.read_text())["time_ratio"]
    for number, (variant, seed, path) in enumerate(missing, start=1):
        print(f"{setting.name}: run {number} of {len(missing)}, {variant}, seed {seed}", flush=True)
        last = setting.steps if variant != "sit" else round(setting.steps * max(ratio, 1))
        write_json(path, run(setting, source, bench, variant, seed, last))


def run(
    setting: Setting, source: LatentSource, bench: "Bench", variant: str, seed: int, last: int
) -> dict[str, Any]:
    """Trains `variant` from `seed` for `last` steps; what was measured, plain values."""
    experiment = make_experiment(setting, variant, seed)
    program = make_program(experiment, source.spec, one_device(experiment))
    step, state = compile_step(program), program.init()
    wanted = {*range(setting.every, setting.steps + 1, setting.every), setting.steps, last}
    points, probe, losses = [], {}, []
    began = time.perf_counter()
    reader = feed(experiment, source)
    for done in range(1, last + 1):
        state, metrics = step(state, next(reader))
        losses.append(metrics["generation"])
        if done in wanted:
            loss = float(np.mean(jax.device_get(losses)))  # since the last point
            points.append({"step": done, "loss": loss} | bench.score(state.ema))
            losses.clear()
            left = format_seconds((time.perf_counter() - began) / done * (last - done))
            told = "  ".join(f"{name} {value:.4g}" for name, value in points[-1].items())
            print(f"  {told}  {left} left", flush=True)
        if done in (setting.steps, last):
            probe[str(done)] = bench.probe(state.ema)
    reader.close()
    return {"points": points, "probe": probe}


class Bench:
    """What all runs on a data set share: real images, a classifier of them, a sampler.

    `facts` says how well real images score: `floor` is the Fréchet distance of as many real images
    as there are samples, `accuracy` the share of them that the classifier knows.
    """

    def __init__(self, setting: Setting):
        experiment = make_experiment(setting, "sit", seed=0)
        self._experiment, self._setting = experiment, setting
        training, reference, fresh = real_images(setting)
        self._classifier = train_classifier(
            *training, experiment.data.num_classes, setting.classifier_steps
        )
        network = self._classifier.network
        self._pool = jax.jit(lambda params, x: network.apply({"params": params}, x).pool)
        self._real = fit_gaussian(self._features(reference.images))
        self._probed = fresh.rows(0, setting.fitted + setting.tested)

        known = float(np.mean(self._classifier.predict(fresh.images) == fresh.labels))
        half = fit_gaussian(self._features(fresh.images[: setting.samples]))
        base = self._real
        if setting.data == "digits":  # no other images: one half against the other
            parts = np.array_split(self._features(fresh.images), 2)
            half, base = fit_gaussian(parts[0]), fit_gaussian(parts[1])
        self.facts = {"floor": frechet_distance(half, base), "accuracy": known}

        model = experiment.objective(one_device(experiment)).model
        steps = make_steps(experiment.process, "heun", setting.solver_steps)
        self._sampler = make_sampler(model, experiment.process, steps, Guidance(1.0))
        self._tap = jax.jit(self._pooled_features)
        self._model = model

    def score(self, params: Any) -> dict[str, float]:
        """Fréchet distance and class agreement of samples of the model with `params`."""
        setting, classes = self._setting, self._experiment.data.num_classes
        labels = np.arange(setting.samples, dtype=np.int32) % classes
        params = {name: value for name, value in params.items() if name != "head"}
        chunk = min(250, setting.samples)
        chunks = range(-(-setting.samples // chunk))
        drawn = sample_chunks(
            self._sampler, params, labels, 0, chunk, chunks, jax.local_devices()[:1]
        )
        images = to_pixels(np.concatenate([latents for _, latents in drawn])[: setting.samples])
        return {
            "frechet": frechet_distance(fit_gaussian(self._features(images)), self._real),
            "agreement": float(np.mean(self._classifier.predict(images) == labels)),
        }

    def probe(self, params: Any) -> list[float]:
        """Accuracy of a logistic regression on each block's features, averaged over tokens, at
        t = 0.3 and without a label."""
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        params = {name: value for name, value in params.items() if name != "head"}
        images, labels = self._probed
        parts = range(0, len(images), 256)
        features = np.concatenate(
            [np.asarray(self._tap(params, images[i : i + 256], i)) for i in parts], axis=1
        )
        split = self._setting.fitted
        accuracies = []
        for block in features:
            classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
            classifier.fit(block[:split], labels[:split])
            accuracies.append(float(classifier.score(block[split:], labels[split:])))
        return accuracies

    def _pooled_features(self, params: Any, images: jax.Array, first: jax.Array) -> jax.Array:
        """Features [depth, B, D] of images uint8 [B, H, W, C], of which `first` is the first."""
        x = images.astype(jnp.float32) / 127.5 - 1
        noise = jax.random.normal(stream_key(0, "learning probe", first), x.shape)
        t = jnp.full(len(x), PROBE_TIME)
        null = jnp.full(len(x), self._experiment.data.num_classes, jnp.int32)
        x_t = self._experiment.process.corrupt(x, noise, t)
        features = self._model.apply({"params": params}, x_t, t, null, taps="all").features
        return jnp.stack([features[k].mean(1) for k in sorted(features)])

    def _features(self, images: np.ndarray) -> np.ndarray:
        """The classifier's pool features [N, 64] of `images` uint8 [N, H, W, C]."""
        parts = [images[i : i + 500] for i in range(0, len(images), 500)]
        return np.concatenate([self._pool(self._classifier.params, part) for part in parts])


def real_images(setting: Setting) -> tuple[Images, Images, Images]:
    """The training set, the reference, and images for a floor and the probes, shuffled.

    Of shapes, neither of the last two was trained on. There are no other digits than the 1797, and
    all three are those.
    """
    training = Images(*EMBEDDED[f"embedded:{setting.data}"].load())
    if setting.data == "digits":
        images, labels = load_digits()
        order = np.random.default_rng(0).permutation(len(images))
        return training, training, Images(images[order], labels[order])
    reference_end = TRAINING + 5000
    fresh = max(setting.samples, setting.fitted + setting.tested)
    return (
        training,
        Images(*draw_shapes(TRAINING, reference_end)),
        Images(*draw_shapes(reference_end, reference_end + fresh)),
    )


def make_experiment(setting: Setting, variant: str, seed: int) -> Experiment:
    """The experiment of the setting's config, changed as `variant` says."""
    path = CONFIGS / f"{setting.data}.py"
    spec = importlib.util.spec_from_file_location(f"config_{setting.data}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config().to_dict()
    for section, changes in setting.changes.items():
        config[section].update(changes)
    config["sra"].update(VARIANTS[variant](config["sra"]))
    config["train"]["seed"] = seed
    experiment = Experiment.from_dict(config)
    if variant == "decay":
        # The released code's: constant for 150 of 800 epochs, then a tenth every 1000.
        epoch = setting.steps / 800
        weight = WeightSchedule(0.2, 1, round(150 * epoch), round(1000 * epoch))
        experiment = dataclasses.replace(experiment, weight=weight)
    return experiment


def time_steps(setting: Setting, source: LatentSource) -> dict[str, float]:
    """Milliseconds of a step of SiT and of the paper's variant, taken in turns, and their ratio.

    By the clock of this process's work, which stands still while others have the core, and the
    least of all steps, as others disturb the caches too.
    """
    running, taken = {}, {"sit": [], "paper": []}
    for variant in taken:
        experiment = make_experiment(setting, variant, seed=0)
        program = make_program(experiment, source.spec, one_device(experiment))
        reader = feed(experiment, source)
        running[variant] = (compile_step(program), program.init(), next(reader))
        reader.close()
    for _ in range(TIMED_STEPS):
        for variant, (step, state, batch) in running.items():
            began = time.process_time()
            state, metrics = step(state, batch)
            jax.block_until_ready((state, metrics))
            taken[variant].append(1e3 * (time.process_time() - began))
            running[variant] = (step, state, batch)
    sit, paper = (min(times) for times in taken.values())
    return {"sit_ms": sit, "paper_ms": paper, "time_ratio": paper / sit}


def one_device(experiment: Experiment) -> jax.sharding.Mesh:
    """The mesh of the first device: what is compared here needs no more."""
    return make_mesh(experiment.mesh, jax.devices()[:1])


def compile_step(program: TrainProgram) -> jax.stages.Compiled:
    return program.step.lower(program.state, program.batch).compile()


def feed(experiment: Experiment, source: LatentSource) -> Iterator[dict[str, jax.Array]]:
    """The run's batches, on the device."""
    settings = experiment.train
    return prefetch(batches(source, settings.batch_size, settings.seed, 0), jax.device_put)


def to_pixels(latents: np.ndarray) -> np.ndarray:
    """Latents of the pixel codec -> uint8."""
    return PixelCodec().decode(latents)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Writes `value` so that `path` appears whole or not at all."""
    with replacing(path) as scratch:
        scratch.write_text(json.dumps(value, indent=1))


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
