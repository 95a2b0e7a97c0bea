"""The probe command: numbers against scikit-learn, cache, figures and refusals."""

import json
import shutil
from functools import partial

import jax
import numpy as np
import pytest
from PIL import Image
from scipy import linalg, stats
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from sra_jax.checkpoints.store import CheckpointStore
from sra_jax.core.errors import InputError, RunError
from sra_jax.core.files import locked
from sra_jax.data.embedded import EMBEDDED, load_digits
from sra_jax.jobs.probe import ProbeRequest, probe
from sra_jax.probing import survey
from sra_jax.run import directory as workdirs

TIMES = (0.1, 0.5)


@pytest.fixture(scope="module")
def workdir(digits_run, tmp_path_factory):
    """A run that was probed at its two checkpoints; to look at only."""
    copy = shutil.copytree(digits_run, tmp_path_factory.mktemp("probed") / "tiny")
    probe(ProbeRequest(str(copy), times="0.5,0.1,0.5", every=60))
    return copy


@pytest.fixture(scope="module")
def report(workdir):
    return json.loads((workdir / "probe" / "probe.json").read_text())


@pytest.fixture
def copied(workdir, tmp_path):
    """The same, to write to."""
    return shutil.copytree(workdir, tmp_path / "tiny")


def features(workdir, side, block, time):
    """Features of the last checkpoint, read as anybody reads them."""
    (file,) = workdir.glob(f"probe/features/step120-ema-{side}-*/block{block:02d}-t{time}.npz")
    return read(file)


def read(file):
    with np.load(file) as arrays:
        return arrays["features"]


def split_labels():
    """Labels of both splits; the first fifth of a permutation is held out."""
    order, labels = np.random.default_rng(0).permutation(1797), load_digits()[1]
    return labels[np.sort(order[359:])], labels[np.sort(order[:359])]


def test_every_number_is_that_of_scikit_learn_and_scipy(workdir, report):
    labels, test_labels = split_labels()
    assert (report["train_images"], report["test_images"]) == (1438, 359)
    assert report["chance"] == np.bincount(test_labels).max() / 359
    cells = report["checkpoints"][-1]["cells"]
    assert [(c["block"], c["time"]) for c in cells] == [(b, t) for t in TIMES for b in (1, 2, 3, 4)]
    for cell in cells:
        train, test = (features(workdir, s, cell["block"], cell["time"]) for s in ("train", "test"))
        scaler = StandardScaler().fit(train)
        x, y = scaler.transform(train), scaler.transform(test)
        model = LogisticRegression(max_iter=3000).fit(x, labels)
        assert abs(cell["top1"] - model.score(y, test_labels)) <= 0.01
        ranked = np.argsort(-model.predict_proba(y), axis=1)[:, :5]
        assert abs(cell["top5"] - np.mean((ranked == test_labels[:, None]).any(1))) <= 0.01
        neighbours = KNeighborsClassifier(20, metric="cosine").fit(x, labels)
        assert abs(cell["knn"] - neighbours.score(y, test_labels)) <= 0.003  # one image
        values = linalg.svdvals((train - train.mean(0)).astype(np.float64))
        assert cell["effective_rank"] == pytest.approx(np.exp(stats.entropy(values)), rel=1e-4)
        assert cell["feature_norm"] > np.linalg.norm(test, axis=1).mean() > 0  # of a mean of them


def test_features_tell_digits_apart(report):
    """More than chance where there is signal, less of it with more noise."""
    for checkpoint in report["checkpoints"]:
        top1 = np.reshape([cell["top1"] for cell in checkpoint["cells"]], (2, 4))
        assert (top1[0] > 0.6).all() and (top1[0] > top1[1]).all()
        for row in checkpoint["alignment"]:
            assert 0 < row["cosine"] <= 1
    assert [c["step"] for c in report["checkpoints"]] == [60, 120]
    assert (report["student_block"], report["teacher_block"]) == (1, 3)


def test_pictures_are_written(workdir, report):
    assert report["pictures"] == ["heatmap.png", "depth.png", "pca.png", "checkpoints.png"]
    for name in report["pictures"]:
        with Image.open(workdir / "probe" / name) as picture:
            assert picture.format == "PNG" and min(picture.size) > 200


def test_a_second_probe_computes_no_feature_again(copied, monkeypatch):
    def refuse(*_):
        raise AssertionError("a feature is computed again")

    monkeypatch.setattr(survey, "extract", refuse)
    before = json.loads((copied / "probe" / "probe.json").read_text())
    again = probe(ProbeRequest(str(copied), blocks="3,2", times="0.5", checkpoints="120"))
    expected = [c for c in before["checkpoints"][-1]["cells"] if c["block"] in (2, 3)]
    expected = [c for c in expected if c["time"] == 0.5]
    for cell, known in zip(again["checkpoints"][0]["cells"], expected, strict=True):
        assert cell == pytest.approx(known, abs=0.003)
    assert again["pictures"] == ["heatmap.png", "depth.png", "pca.png"]
    with pytest.raises(AssertionError, match="again"):
        probe(ProbeRequest(str(copied), blocks="2", times="0.5", weights="student"))


def test_damaged_features_are_computed_again(copied, caplog):
    before = {path: path.read_bytes() for path in copied.glob("probe/features/*/*.npz")}
    assert len(before) == 32  # two checkpoints, two splits, two times, four blocks
    harmed = next(path for path in before if "test" in str(path) and "block02-t0.1" in path.name)
    harmed.write_bytes(b"\0" * len(before[harmed]))
    probe(ProbeRequest(str(copied), times="0.1,0.5", every=60))
    assert f"{harmed} are damaged" in caplog.text
    found = read(harmed)
    harmed.write_bytes(before[harmed])
    np.testing.assert_allclose(found, read(harmed), rtol=1e-5, atol=1e-5)  # a pass of one block
    after = {path: path.read_bytes() for path in copied.glob("probe/features/*/*.npz")}
    assert after == before


def test_another_run_of_the_same_steps_is_not_mistaken_for_this_one(copied):
    """As after training anew in the same place."""
    old = features(copied, "test", 1, 0.1)
    with CheckpointStore(copied) as store:
        trained = workdirs.load_model(str(copied), "ema", 120)
        changed = jax.tree.map(lambda leaf: 1.1 * leaf, trained.params)
    shutil.rmtree(copied / "checkpoints")
    with CheckpointStore(copied) as store:
        store.save(120, {"ema": changed}, {})
    report = probe(ProbeRequest(str(copied), blocks="1", times="0.1"))
    assert report["checkpoints"][0]["alignment"] is None  # it lacks the student's weights
    files = copied.glob("probe/features/step120-ema-test-*/block01-t0.1.npz")
    assert len([f for f in files if not np.allclose(read(f), old)]) == 1
    with pytest.raises(InputError, match=r"has no student weights, expected one of: ema; choose"):
        probe(ProbeRequest(str(copied), weights="student"))


def test_features_that_are_not_finite_end_the_probe(copied):
    trained = workdirs.load_model(str(copied), "ema", 120)
    with CheckpointStore(copied) as store:
        broken = jax.tree.map(partial(np.full_like, fill_value=np.inf), trained.params)
        store.save(180, {"ema": jax.tree.map(jax.numpy.asarray, broken)}, {})
    with pytest.raises(RunError, match=r"not finite; take another checkpoint"):
        probe(ProbeRequest(str(copied), blocks="1", times="0.1"))


def test_two_probes_do_not_write_to_one_place(copied):
    with (
        locked(copied / "probe"),
        pytest.raises(InputError, match=r"another command .* writes to .*probe; wait .* --out"),
    ):
        probe(ProbeRequest(str(copied)))


BAD = {
    "nothing": ([], "--workdir is missing", "--help"),
    "no run": (["--workdir={tmp}"], "{tmp} holds no run", "config.json"),
    "block 0": (["--blocks=0"], "block 0", "1 to 4"),
    "block beyond": (["--blocks=2,5"], "block 5", "1 to 4"),
    "block text": (["--blocks=last"], "'last'", "all or a list"),
    "time": (["--times=0.1,1.5"], "time 1.5", "0 (data) to 1 (noise)"),
    "negative time": (["--times=-0.1"], "time -0.1", "0 (data) to 1 (noise)"),
    "no time": (["--times=nan"], "time nan", "0 (data) to 1 (noise)"),
    "time text": (["--times="], "''", "a list like"),
    "weights": (["--weights=emma"], "'emma'", "did you mean 'ema'"),
    "step": (["--checkpoints=60,61"], "no step 61", "[60, 120]"),
    "every": (["--every=50"], "multiple of 50", "keep_every"),
    "never": (["--every=0"], "every is 0", "at least 1"),
    "both": (["--every=60", "--checkpoints=60"], "--every", "exclude"),
    "num": (["--num=-1"], "num is -1", "0 is all"),
    "few": (["--num=9"], "7 training images of 10 classes", "--num"),
    "protocol": (["--protocol=papers"], "'papers'", "did you mean 'paper'"),
    "image": (["--images=1797"], "no image 1797", "0 to 1796"),
    "seed": (["--seed=-1"], "seed is -1", "[0, 2**32)"),
    "data": (["--data={tmp}/none"], "no directory {tmp}/none", "data set"),
    "file": (["--data={tmp}/file"], "{tmp}/file is a file", "directory of a latent data set"),
    "folder": (["--test_data={tmp}"], "{tmp} is a directory that", "expected one of latents"),
    "embedded": (["--data=embedded:digit"], "'embedded:digit'", "did you mean 'embedded:digits'"),
    "test data": (["--test_data={tmp}/none"], "{tmp}/none", "data set"),
    "out": (["--out={tmp}/file/probe"], "{tmp}/file/probe", "cannot write"),
    "bucket": (["--out=gs://b/probe"], "gs://b/probe", "local path"),
}


@pytest.mark.parametrize("flags, value, advice", BAD.values(), ids=BAD)
def test_probe_refuses(forks, digits_run, tmp_path, flags, value, advice):
    (tmp_path / "file").touch()
    defaults = [f"--workdir={digits_run}", f"--out={tmp_path}/out"] if flags else []
    result = forks.run("probe", [*defaults, *(flag.format(tmp=tmp_path) for flag in flags)])
    assert result.code == 2, result
    (line,) = result.err.splitlines()
    assert line.startswith("error: ") and value.format(tmp=tmp_path) in line and advice in line
    assert "probing" not in result.out


def test_a_run_whose_data_are_elsewhere_says_what_to_do(forks, digits_run, tmp_path):
    shutil.copytree(digits_run, tmp_path / "run", ignore=shutil.ignore_patterns("data"))
    saved = json.loads((tmp_path / "run/config.json").read_text())
    saved["config"]["data"]["path"] = "data/imagenet"
    (tmp_path / "run/config.json").write_text(json.dumps(saved))
    result = forks.run("probe", [f"--workdir={tmp_path}/run"])
    assert result.code == 2 and "data/imagenet, are not here; give --data=DIR" in result.err
    shutil.rmtree(tmp_path / "run/checkpoints")
    result = forks.run("probe", [f"--workdir={tmp_path}/run"])
    assert result.code == 2 and "no checkpoint in" in result.err


def test_help_shows_an_example_and_the_flags(forks):
    result = forks.run("probe", ["--help"])
    assert (result.code, result.err) == (0, "")
    assert "python -m sra_jax probe --workdir=" in result.out
    assert all(name in result.out for name in EMBEDDED)
    flags = "workdir blocks times weights checkpoints every data test_data num out"
    for flag in flags.split():
        assert f"--{flag}: " in result.out


def test_the_command_probes_and_says_what_it_found(forks, digits_run, tmp_path):
    flags = [f"--workdir={digits_run}", "--blocks=3", "--times=0.2", "--protocol=paper"]
    flags += [f"--out={tmp_path}/out", "--images=5,9", "--data=embedded:digits", "--num=500"]
    result = forks.run("probe", flags)
    assert (result.code, result.err) == (0, "")
    assert "400 for training, 100 for testing; paper protocol" in result.out
    assert "accuracy of the majority class: 1" in result.out  # 10 % or somewhat more
    assert "ema weights of step 120" in result.out and f"{tmp_path}/out/heatmap.png" in result.out
    found = json.loads((tmp_path / "out/probe.json").read_text())
    assert (found["blocks"], found["times"], found["protocol"]) == ([3], [0.2], "paper")
    assert not (digits_run / "probe").exists()
