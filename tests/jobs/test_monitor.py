"""Grids and FID of a run while it trains, and the watcher that measures beside it."""

import json
import os
import runpy
import shutil
import signal

import numpy as np
import pytest
from commands import REPOSITORY, assert_bit_identical, saved_arrays
from etils import epath
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import hurry_classifier

from sra_jax.config.schema import EvaluationConfig, Experiment
from sra_jax.core.errors import InputError
from sra_jax.evaluation import history
from sra_jax.jobs.evaluate import EvaluateRequest, evaluate
from sra_jax.jobs.sample import SampleRequest, sample
from sra_jax.jobs.train import train
from sra_jax.jobs.watch import watch
from sra_jax.run.directory import read
from sra_jax.sampling.grid import image_grid
from sra_jax.sampling.images import SampledImages

CLASSIFIER = {"features": "classifier", "reference": "embedded:digits", "fid_images": 70}
SETTING = {"features": "classifier", "reference": "embedded:digits", "images": 70}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    hurry_classifier(monkeypatch, 20)
    monkeypatch.setattr("sra_jax.jobs.watch.POLL_SECONDS", 0)


def digits(steps=4, **evaluation):
    """A tiny model on the digits."""
    config = runpy.run_path(str(REPOSITORY / "configs" / "digits.py"))["get_config"]()
    config.model.update(width=16, depth=2, num_heads=2)
    config.method.sra.teacher_block = 2
    config.train.update(steps=steps, batch_size=8, checkpoint_every=2, keep=1)
    config.sampling.steps = "3"
    config.evaluation.update({"grid_every": 0, **evaluation})
    return config.to_dict()


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """A run that shows itself every second step."""
    with pytest.MonkeyPatch.context() as patch:
        hurry_classifier(patch, 20)
        workdir = tmp_path_factory.mktemp("monitor") / "run"
        train(digits(grid_every=2, fid_every=2, **CLASSIFIER), str(workdir))
    return workdir


@pytest.fixture
def copy(shown, tmp_path):
    return shutil.copytree(shown, tmp_path / "copy")


def test_grids_are_what_sample_writes(shown, tmp_path):
    pictures = sorted(path.name for path in (shown / "samples").iterdir())
    assert pictures == ["step_00000002.png", "step_00000004.png"]
    out = str(tmp_path / "out.npz")
    sample(SampleRequest(workdir=str(shown), out=out, num=40, chunk=5))  # of 8 devices
    expected = image_grid(np.load(out)["arr_0"])
    found = np.asarray(Image.open(shown / "samples" / "step_00000004.png"))
    np.testing.assert_array_equal(found, expected)


def test_grids_and_numbers_are_in_tensorboard(shown):
    events = EventAccumulator(str(shown / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Images("samples")] == [2, 4]
    records = history.read(epath.Path(shown))
    assert [event.step for event in events.Tensors("classifier_fid")] == [2, 4]
    for event, record in zip(events.Tensors("classifier_fid"), records, strict=True):
        assert event.tensor_proto.float_val[0] == pytest.approx(record["classifier_fid"], rel=1e-6)
        assert record.items() >= SETTING.items()


def test_numbers_are_those_of_evaluate(capsys, shown):
    evaluate(
        EvaluateRequest(
            workdir=str(shown),
            num=70,
            reference="embedded:digits",
            features="classifier",
            metrics="fid",
        )
    )
    found = json.loads(capsys.readouterr().out.splitlines()[-1])["classifier_fid"]
    assert history.read(epath.Path(shown))[-1]["classifier_fid"] == pytest.approx(found, rel=1e-4)


def test_showing_changes_nothing(shown, tmp_path):
    train(digits(), str(tmp_path / "plain"))
    assert_bit_identical(saved_arrays(shown, 4), saved_arrays(tmp_path / "plain", 4))


def test_what_the_end_of_a_run_cut_short_is_made_up_for(copy):
    """Here the numbers of step 4, and a grid, as if it had been killed after the save."""
    path = copy / history.FILE
    first, second = path.read_text().splitlines()
    path.write_text(first + "\n")
    (copy / "samples" / "step_00000004.png").unlink()
    train(digits(6, grid_every=2, fid_every=2, **CLASSIFIER), str(copy))
    records = history.read(epath.Path(copy))
    assert [record["step"] for record in records] == [2, 4, 6]
    assert records[1]["classifier_fid"] == pytest.approx(
        json.loads(second)["classifier_fid"], rel=1e-5
    )
    assert len(list((copy / "samples").iterdir())) == 3


def test_the_last_step_is_shown_even_of_a_run_that_has_finished(copy):
    """It was killed in its last moments, or the intervals do not divide its length."""
    (copy / "samples" / "step_00000004.png").unlink()
    (copy / history.FILE).unlink()
    train(digits(4, grid_every=3), str(copy))
    assert (copy / "samples" / "step_00000004.png").exists()
    train(digits(4, grid_every=3, fid_every=100, **CLASSIFIER), str(copy))
    assert [record["step"] for record in history.read(epath.Path(copy))] == [4]
    events = sorted((copy / "tensorboard").iterdir())
    train(digits(4, grid_every=3, fid_every=100, **CLASSIFIER), str(copy))
    assert sorted((copy / "tensorboard").iterdir()) == events  # nothing left to do


def test_a_measurement_that_a_signal_ends_is_made_when_the_run_goes_on(tmp_path, monkeypatch):
    """The signal comes with the first of two chunks of the FID of step 2."""
    chunks = SampledImages.chunks

    def interrupted(self, first, last):
        for chunk in chunks(self, first, last):
            os.kill(os.getpid(), signal.SIGTERM)
            yield chunk

    monkeypatch.setattr(SampledImages, "chunks", interrupted)
    run, config = str(tmp_path / "run"), digits(fid_every=2, **CLASSIFIER)
    assert train(config, run) == 75
    assert history.read(epath.Path(run)) == []
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["2"]
    monkeypatch.undo()
    hurry_classifier(monkeypatch, 20)
    assert train(config, run) == 0
    assert [record["step"] for record in history.read(epath.Path(run))] == [2, 4]


def test_the_best_checkpoint_is_kept(copy):
    records = [{"step": step, **SETTING, "classifier_fid": step} for step in (4, 1)]
    other = {
        "step": 2,
        **SETTING,
        "images": 9,
        "classifier_fid": 0.5,
    }  # measured by another setting
    text = "".join(json.dumps(record) + "\n" for record in [other, *records[:1]])
    (copy / history.FILE).write_text(text)
    train(digits(8), str(copy))
    assert sorted(path.name for path in (copy / "checkpoints").iterdir()) == ["4", "8"]


def test_a_run_of_version_01_keeps_its_history(caplog, copy):
    """There the classifier was called "probe", and SRA had a section of its own."""
    config, path = copy / "config.json", copy / history.FILE
    saved = json.loads(config.read_text().replace('"classifier"', '"probe"'))
    saved["config"] |= saved["config"].pop("method")
    del saved["config"]["method_files"]
    old = json.dumps(saved | {"format_version": 1})
    config.write_text(old)
    path.write_text(path.read_text().replace("classifier", "probe"))
    assert "classifier" not in old + path.read_text() and "probe_fid" in path.read_text()
    before = history.read(epath.Path(copy))
    assert read(epath.Path(copy)).config["evaluation"]["features"] == "classifier"
    request = {"workdir": str(copy), "num": 70, "reference": "embedded:digits", "metrics": "fid"}
    watch(EvaluateRequest(**request))  # finds all of it measured
    assert history.read(epath.Path(copy)) == before
    train(digits(6, grid_every=2, fid_every=2, **CLASSIFIER), str(copy))
    records = history.read(epath.Path(copy))
    assert records[:2] == before and [record["step"] for record in records] == [2, 4, 6]
    assert all(record.items() >= SETTING.items() for record in records)
    best = min(records, key=lambda record: record["classifier_fid"])
    assert history.best_step(epath.Path(copy)) == best["step"]
    assert json.loads(config.read_text())["config"]["evaluation"]["features"] == "classifier"


def test_a_watcher_measures_the_last_checkpoint_and_ends(caplog, copy):
    (copy / history.FILE).write_text('{"step": 2, "cut sh')
    caplog.set_level("INFO")
    request = EvaluateRequest(
        workdir=str(copy),
        num=70,
        reference="embedded:digits",
        features="classifier",
        metrics="fid,is",
    )
    watch(request)
    records = history.read(epath.Path(copy))
    assert [record["step"] for record in records] == [4, 2]  # the newest first
    assert all(record["classifier_inception_score"] >= 1 for record in records)
    assert "finished" in caplog.messages[-1] and "the best is step" in caplog.text
    events = EventAccumulator(str(copy / "tensorboard" / "watch"))
    events.Reload()
    assert [event.step for event in events.Tensors("classifier_fid")] == [4, 2]
    (copy / history.FILE).unlink()
    shutil.rmtree(copy / "checkpoints" / "4" / "ema")
    watch(request)
    assert "step 4 is passed over" in caplog.text
    assert [record["step"] for record in history.read(epath.Path(copy))] == [2]


def test_history_ranks_what_is_alike(tmp_path):
    workdir = epath.Path(tmp_path)
    assert history.best_step(workdir) is None
    lines = ["no json", "[1]", '{"step": "x"}']
    for step, images, fid in ((1, 9, 0.1), (2, 70, 5.0), (3, 70, 3.0), (4, 70, 4.0)):
        lines.append(json.dumps({"step": step, **SETTING, "images": images, "classifier_fid": fid}))
    (workdir / history.FILE).write_text("\n".join(lines))
    assert history.best_step(workdir) == 3


@pytest.mark.parametrize(
    ("evaluation", "message"),
    [
        ({"grid_every": -1}, r"grid_every is -1, expected at least 0 \(0 is never\)$"),
        ({"fid_every": -2}, r"fid_every is -2, expected at least 0 \(0 is never\)$"),
        ({"fid_images": 1}, "fid_images is 1, expected at least 2$"),
        ({"fid_every": 2}, "fid_every needs evaluation.reference"),
        (
            {"fid_every": 3, **CLASSIFIER},
            "fid_every is 3, expected a multiple of train.checkpoint_every",
        ),
        ({"features": "pixels"}, "unknown evaluation.features 'pixels'"),
        ({"features": "probe"}, "^evaluation.features=probe is called classifier now"),
        (
            {"fid_every": 2, "reference": "x"},
            "^features=inception needs inception=FILE: fetch https://",
        ),
        (
            {"fid_every": 2, **CLASSIFIER, "inception": "x"},
            "^inception=x needs features=inception, but features is classifier",
        ),
        ({"grid_every": 2, "vae": "x"}, "no weights, but --vae is x"),
        ({"fid_every": 2, **CLASSIFIER, "reference": "none.npz"}, "no file or folder none.npz"),
    ],
)
def test_bad_settings_are_refused(evaluation, message, tmp_path):
    with pytest.raises(InputError, match=message):
        train(digits(**evaluation), str(tmp_path))
    assert not (tmp_path / "checkpoints" / "2").exists()


def test_configs_without_the_section_are_read():
    config = digits()
    del config["evaluation"]
    assert Experiment.from_dict(config).evaluation == EvaluationConfig()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"workdir": None}, "--watch needs --workdir"),
        ({"features": "inception"}, "features=inception needs inception=FILE"),
        ({"checkpoint": 3}, "--checkpoint=3 does not go with --watch"),
        ({"num": 1}, "num is 1, expected 2 to"),
        ({"workdir": "none"}, "no workdir none"),
    ],
)
def test_bad_watches_are_refused(changes, message, shown):
    request = {"workdir": str(shown), "reference": "embedded:digits", "features": "classifier"}
    with pytest.raises(InputError, match=message):
        watch(EvaluateRequest(**request | changes))
