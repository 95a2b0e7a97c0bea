"""The learning benchmark at its smallest: a few steps of a tiny model on the digits."""

import dataclasses
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sra_jax.codecs import PixelCodec
from sra_jax.config.schema import Experiment
from sra_jax.data.embedded import load_digits
from sra_jax.training.optimizer import make_optimizer
from sra_jax.training.state import init_state
from sra_jax.training.step import StepConfig, draw_example

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"
# What a borrowed GPU machine lacks. scipy and absl come with jax and optax.
LACKING = (
    "array_record",
    "clu",
    "grain",
    "matplotlib",
    "ml_collections",
    "orbax",
    "PIL",
    "safetensors",
    "scipy",
    "sklearn",
    "tensorflow",
    "tensorflow_datasets",
)


@pytest.fixture(scope="module")
def learning():
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import learning

        yield learning
    finally:
        sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def setting(learning):
    """A few steps of a tiny model on the digits."""
    digits = learning.SETTINGS["digits"]
    transformer = dataclasses.replace(digits.recipe.transformer, width=8, depth=3, num_heads=2)
    return dataclasses.replace(
        digits,
        recipe=dataclasses.replace(digits.recipe, transformer=transformer, batch_size=8),
        steps=4,
        every=2,
        samples=80,
        solver_steps=2,
        fitted=100,
        tested=50,
        classifier_steps=20,
        timed=2,
    )


def test_missing_runs_are_made_and_reported_until_time_runs_out(
    learning, setting, tmp_path, capsys, monkeypatch
):
    record = tmp_path / "record.json"
    record.write_text('{"calls": [{"parts": {}}]}')
    made_before = tmp_path / "digits-no_gap-0.json"
    points = [{"step": n, "loss": 1.0, "frechet": 1.0, "agreement": 0.5} for n in (2, 4)]
    made_before.write_text(json.dumps({"points": points, "probe": {"4": [0.1, 0.2, 0.3]}}))
    flags = [f"--out={tmp_path}", f"--record={record}", "--part=learn", "--tiny", "--seconds=60"]
    flags += ["--variants=sit,no_gap,paper"]
    monkeypatch.setattr(sys, "argv", ["learning.py", *flags])
    monkeypatch.setattr(learning, "TINY", setting)
    left = iter([60.0, 0.0])  # before the second run, and before the third
    clock = sys.modules["records"].Clock
    monkeypatch.setattr(clock, "left", property(lambda self: next(left)))
    learning.main()

    shown = capsys.readouterr()
    assert "stopped: 0 s left" in shown.err
    assert sorted(path.name for path in tmp_path.glob("digits-*.json")) == [
        "digits-no_gap-0.json",
        "digits-paper-0.json",
        "digits-sit-0.json",
    ]
    assert json.loads(made_before.read_text())["points"] == points

    facts = json.loads((tmp_path / "digits.json").read_text())
    runs = {v: json.loads((tmp_path / f"digits-{v}-0.json").read_text()) for v in ("sit", "paper")}
    assert [point["step"] for point in runs["paper"]["points"]] == [2, 4]
    # Whole dispatches of two steps.
    assert runs["sit"]["points"][-1]["step"] == max(4, 2 * round(2 * facts["time_ratio"]))
    for run in runs.values():
        assert np.isfinite([[p["frechet"], p["loss"]] for p in run["points"]]).all()
        assert np.shape(run["probe"]["4"]) == (3,)
    assert 0 < facts["floor"] < runs["sit"]["points"][0]["frechet"]

    assert "| SiT + SRA | 4 | 1 |" in shown.out and "block 3" in shown.out
    assert (tmp_path / "learning_digits.png").read_bytes()[:4] == b"\x89PNG"

    tables = json.loads(record.read_text())["calls"][-1]["parts"]["learn"]["tables"]
    paper = tables["runs"][-1]
    assert (paper["variant"], paper["seed"], paper["steps"]) == ("paper", 0, 4)
    assert paper["frechet"] == runs["paper"]["points"][-1]["frechet"]
    assert paper["probe_first"] == runs["paper"]["probe"]["4"][0]
    rows = {(row["compared"], row["measure"]): row for row in tables["paired"]}
    for compared, step in (("equal steps", 4), ("equal time", runs["sit"]["points"][-1]["step"])):
        (sit,) = (point for point in runs["sit"]["points"] if point["step"] == step)
        row = rows[compared, "frechet"]
        expected = paper["frechet"] - sit["frechet"]
        assert row["mean"] == row["least"] == row["most"] == expected and row["seeds"] == 1


def test_without_matplotlib_there_are_tables_only(learning, tmp_path, capsys, monkeypatch):
    point = {"step": 4, "loss": 1.0, "frechet": 1.0, "agreement": 0.5}
    run = {"points": [point], "probe": {"4": [0.1, 0.2]}}
    facts = {"sit_ms": 1.0, "paper_ms": 2.0, "time_ratio": 2.0, "floor": 0.1, "accuracy": 0.9}
    (tmp_path / "digits-paper-0.json").write_text(json.dumps(run))
    (tmp_path / "digits.json").write_text(json.dumps(facts))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    learning.report("digits", tmp_path)
    shown = capsys.readouterr().out
    assert "| SiT + SRA | 4 | 1 |" in shown and "matplotlib" in shown
    assert not list(tmp_path.glob("*.png"))


def test_runs_of_one_seed_start_alike_and_see_the_same(learning, setting):
    images, labels = map(jnp.asarray, load_digits())
    recipes = {name: learning.make_recipe(setting, name) for name in ("sit", "paper")}
    trainers = {n: learning.Trainer(r, images, labels, chunk=2) for n, r in recipes.items()}

    def first_loss(name, seed):
        return float(trainers[name].advance(trainers[name].init(seed), seed)[1][0])

    first = {name: first_loss(name, 5) for name in trainers}
    assert first["sit"] == pytest.approx(first["paper"], rel=1e-5)
    assert abs(first_loss("sit", 6) - first["sit"]) > 1e-4

    # As the step that users train with makes it, whose seed is a constant.
    recipe, objective = recipes["paper"], trainers["paper"].objective
    optimizer = make_optimizer(recipe.optimizer)
    rows = sys.modules["learning_train"].rows_of_steps(5, 0, 1, recipe.batch_size, len(images))[0]
    batch = {"moments": PixelCodec().encode(np.asarray(images[rows])), "labels": labels[rows]}

    @jax.jit
    def begin(batch):
        state = init_state(objective, optimizer, seed=5)
        example = draw_example(objective, StepConfig(seed=5), batch, state.step)
        _, (metrics, _) = objective(state.params, state.ema, {}, example, state.step)
        return state, metrics["generation"]

    state, loss = begin(batch)
    jax.tree.map(np.testing.assert_array_equal, state, trainers["paper"].init(5))
    assert float(loss) == pytest.approx(first["paper"], rel=1e-5)


def test_every_epoch_visits_every_example_once(learning):
    draw = jax.jit(sys.modules["learning_train"].rows_of_steps, static_argnums=(2, 3, 4))
    count, batch, steps = 13, 4, 3  # neither batches nor dispatches divide an epoch
    drawn = np.concatenate([draw(1, first, steps, batch, count) for first in range(0, 39, steps)])
    epochs = drawn.reshape(-1, count)
    assert (np.sort(epochs, axis=1) == np.arange(count)).all()
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == len(epochs)
    # A step's batch does not depend on the dispatch that it falls in.
    np.testing.assert_array_equal(draw(1, 7, 5, batch, count), drawn[7:12])
    assert (draw(2, 0, steps, batch, count) != drawn[:steps]).any()


def test_probes_are_those_of_scikit_learn(learning, setting):
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    images, labels = load_digits()
    pixels = images.reshape(len(images), -1) / 255
    rng = np.random.default_rng(0)
    order, fitted = rng.permutation(len(pixels)), setting.fitted
    sets = rng.normal(size=(3, 64, 8))  # as many as a run's, whose program is compiled by now
    features, labels = np.tanh(pixels @ sets / 4)[:, order].astype(np.float32), labels[order]
    found = sys.modules["learning_bench"].fit_probes(features, labels, fitted, 10)
    for accuracy, x in zip(found, features, strict=True):
        scaler = StandardScaler().fit(x[:fitted])
        classifier = LogisticRegression(max_iter=1000)
        classifier.fit(scaler.transform(x[:fitted]), labels[:fitted])
        expected = classifier.score(scaler.transform(x[fitted:]), labels[fitted:])
        assert 0.3 < expected < 0.99
        assert accuracy == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("data", ["digits", "shapes"])
def test_recipes_equal_the_configs(learning, data):
    spec = importlib.util.spec_from_file_location("config", ROOT / "configs" / f"{data}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    experiment = Experiment.from_dict(module.get_config().to_dict())
    recipe = learning.SETTINGS[data].recipe
    assert recipe == learning.make_recipe(learning.SETTINGS[data], "paper")
    assert recipe.transformer == experiment.trunk("cpu").config
    assert recipe.process == experiment.process
    assert (recipe.sra,) == experiment.methods
    assert recipe.optimizer == experiment.optimizer
    assert recipe.step == experiment.step_config(PixelCodec.scale, PixelCodec.shift)
    assert recipe.batch_size == experiment.train.batch_size


@pytest.mark.parametrize(
    ("variant", "expected"),
    [
        ("paper", {}),
        ("same_block", {"teacher_block": 2}),
        ("no_gap", {"gap_max": 0.0}),
        ("no_head", {"head": False}),
    ],
)
def test_variants_change_the_method(learning, variant, expected):
    setting = learning.SETTINGS["shapes"]
    paper = learning.make_recipe(setting, "paper")
    changed = learning.make_recipe(setting, variant)
    assert changed == dataclasses.replace(paper, sra=dataclasses.replace(paper.sra, **expected))


def test_the_weight_falls_as_in_the_released_code_scaled_to_the_run(learning):
    setting = learning.SETTINGS["shapes"]
    weight = learning.make_recipe(setting, "decay").sra.weight
    assert weight(0) == pytest.approx(0.2)
    assert weight(round(setting.steps * 150 / 800)) == pytest.approx(0.2)
    # 650 epochs after the last constant one, at a tenth every 1000.
    assert weight(setting.steps) == pytest.approx(0.2 * 10**-0.65, rel=1e-2)
    assert learning.make_recipe(setting, "sit").sra is None


def test_accelerators_compute_in_bfloat16(learning):
    setting = learning.SETTINGS["shapes"]
    assert learning.make_recipe(setting, "sit", "gpu").transformer.dtype == "bfloat16"


def test_the_script_needs_jax_flax_optax_and_numpy_only():
    code = f"""
import sys
sys.modules.update(dict.fromkeys({LACKING}))
sys.path.insert(0, {str(BENCHMARKS)!r})
import learning
learning.real_images(learning.TINY)
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
