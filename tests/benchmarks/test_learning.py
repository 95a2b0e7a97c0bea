"""The learning benchmark at its smallest: a few steps of a tiny model on the digits."""

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def learning():
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import learning

        yield learning
    finally:
        sys.path.remove(str(BENCHMARKS))


TINY = {"model": {"width": 8, "depth": 3, "num_heads": 2}, "train": {"batch_size": 8}}


def test_missing_runs_are_made_and_reported(learning, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(learning, "TIMED_STEPS", 4)
    setting = dataclasses.replace(
        learning.SETTINGS["digits"],
        steps=4,
        every=2,
        samples=80,
        solver_steps=2,
        fitted=100,
        tested=50,
        classifier_steps=20,
        changes=TINY,
    )
    made_before = tmp_path / "digits-no_gap-0.json"
    made_before.write_text("{}")
    learning.run_all(setting, ["sit", "no_gap", "paper"], [0], tmp_path)
    assert made_before.read_text() == "{}"
    made_before.unlink()

    facts = json.loads((tmp_path / "digits.json").read_text())
    runs = {v: json.loads((tmp_path / f"digits-{v}-0.json").read_text()) for v in ("sit", "paper")}
    assert [point["step"] for point in runs["paper"]["points"]] == [2, 4]
    assert runs["sit"]["points"][-1]["step"] == max(4, round(4 * facts["time_ratio"]))
    for run in runs.values():
        assert np.isfinite([[p["frechet"], p["loss"]] for p in run["points"]]).all()
        assert np.shape(run["probe"]["4"]) == (3,)
    assert 0 < facts["floor"] < runs["sit"]["points"][0]["frechet"]

    capsys.readouterr()
    learning.report("digits", tmp_path)
    printed = capsys.readouterr().out
    assert "| SiT + SRA | 4 | 1 |" in printed and "block 3" in printed
    assert (tmp_path / "learning_digits.png").read_bytes()[:4] == b"\x89PNG"


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
    paper = learning.make_experiment(setting, "paper", seed=0)
    changed = learning.make_experiment(setting, variant, seed=0)
    assert changed == dataclasses.replace(paper, sra=dataclasses.replace(paper.sra, **expected))


def test_the_weight_falls_as_in_the_released_code_scaled_to_the_run(learning):
    setting = learning.SETTINGS["shapes"]
    weight = learning.make_experiment(setting, "decay", seed=0).weight
    assert weight(0) == pytest.approx(0.2)
    assert weight(round(setting.steps * 150 / 800)) == pytest.approx(0.2)
    # 650 epochs after the last constant one, at a tenth every 1000.
    assert weight(setting.steps) == pytest.approx(0.2 * 10**-0.65, rel=1e-2)
    assert learning.make_experiment(setting, "sit", seed=0).sra is None
