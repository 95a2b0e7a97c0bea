"""Runs that version 0.1 has made are resumed, sampled, probed and exported like those of today.

data/format1 holds two of them, of 20 steps, and the losses of their steps 21 to 40 in version 0.1.
"""

import json
import shutil
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest
from commands import DIGITS, digits, reported_losses
from golden import DATA, ROUNDING
from safetensors.numpy import load_file

from sra_jax.checkpoints.store import CheckpointStore
from sra_jax.run import directory as workdirs

STORED = DATA / "format1"
HEAD = {f"ap_head.linear{i}.{leaf}" for i in (1, 2) for leaf in ("weight", "bias")}
CONFIG = {
    "model__depth": 3,
    "train__steps": 40,
    "train__checkpoint_every": 40,
    "train__log_every": 1,
    "train__ema_decay": 0.9,
}


@pytest.fixture(params=["sit", "dit"])
def kind(request):
    return request.param


@pytest.fixture
def workdir(kind, tmp_path):
    """A stored run, to write to."""
    with zipfile.ZipFile(STORED / f"{kind}.zip") as stored:
        stored.extractall(tmp_path / "run")
    return tmp_path / "run"


def test_training_resumes_with_the_losses_of_version_01(forks, workdir, kind):
    result = forks.run("train", digits(workdir, f"{DIGITS}:{kind}", **CONFIG))
    assert (result.code, result.err) == (0, "")
    assert "resuming from step 20" in result.out and "fresh" not in result.out
    expected = json.loads((STORED / "losses.json").read_text())[kind]
    found = dict(reported_losses(workdir / "tensorboard"))
    assert found.keys() == {int(step) for step in expected} == set(range(21, 41))
    errors = [abs(found[int(step)] / loss - 1) for step, loss in expected.items()]
    print(kind, "worst loss error", max(errors))  # 2e-7 was seen
    assert max(errors) < ROUNDING

    saved = json.loads((workdir / "config.json").read_text())
    assert saved["format_version"] == 2 and "sra" not in saved["config"]
    assert saved["config"]["method"].keys() == {"sra"}
    with CheckpointStore(workdir) as store:
        assert store.names(40) == {"step", "params", "ema", "opt_state", "params_sra", "ema_sra"}
    for step in (20, 40):  # of the old format and of the new
        for weights in ("ema", "student"):
            trained = workdirs.load_model(str(workdir), weights, step)
            _, head = workdirs.load_method(str(workdir), "sra", weights, step)
            assert trained.step == step and "head" not in trained.params
            assert head.keys() == {"fc1", "fc2"}


def test_another_config_than_that_of_version_01_is_refused(forks, workdir, kind):
    flags = digits(workdir, f"{DIGITS}:{kind}", **CONFIG, method__sra__gap_max=0.1)
    result = forks.run("train", flags)
    assert result.code == 2 and "config.method.sra.gap_max was 0.2, is 0.1" in result.err
    saved = json.loads((workdir / "config.json").read_text())
    assert saved["format_version"] == 1


def test_a_stored_run_is_sampled(forks, workdir, tmp_path):
    result = forks.run("sample", [f"--workdir={workdir}", f"--out={tmp_path}/out.npz", "--num=4"])
    assert (result.code, result.err) == (0, "")
    assert "ema weights of step 20" in result.out
    assert np.load(tmp_path / "out.npz")["arr_0"].shape == (4, 8, 8, 1)


def test_a_stored_run_is_probed(forks, workdir):
    flags = [f"--workdir={workdir}", "--blocks=1", "--times=0.2", "--num=200"]
    result = forks.run("probe", flags)
    assert (result.code, result.err) == (0, "")
    report = json.loads((workdir / "probe" / "probe.json").read_text())
    assert (report["student_block"], report["teacher_block"]) == (1, 2)
    (checkpoint,) = report["checkpoints"]
    assert checkpoint["step"] == 20 and len(checkpoint["cells"]) == 1
    assert -1 <= checkpoint["alignment"][0]["cosine"] <= 1


def test_a_stored_run_is_exported_with_its_head(forks, workdir, tmp_path):
    out = tmp_path / "out.safetensors"
    result = forks.run("convert", [f"--source={workdir}", f"--out={out}"])
    assert (result.code, result.err) == (0, "")
    tensors = load_file(out)
    assert tensors.keys() >= HEAD and tensors["ap_head.linear1.weight"].shape == (32, 16)
    with CheckpointStore(workdir) as store:  # the head as it lies in the file
        assert store.names() == {"step", "params", "ema", "opt_state"}


def test_the_features_of_version_01_are_read_by_their_name_of_today(workdir):
    stored = json.loads((workdir / "config.json").read_text())["config"]
    assert stored["evaluation"]["features"] == "probe"
    config = workdirs.read(workdirs.open_directory(str(workdir))).config
    assert config["evaluation"]["features"] == "classifier"


@pytest.mark.parametrize(
    ("had_head", "weight", "lacks"),
    [(False, 0.2, "ema_sra, opt_state, params_sra"), (True, 0.0, "opt_state")],
)
@pytest.mark.parametrize("kind", ["sit"], indirect=True)
def test_weights_that_version_01_converted_are_trained(forks, workdir, had_head, weight, lacks):
    """With SRA if the file had no head, and without it if it had one."""
    path = workdir / "config.json"
    saved, trained = json.loads(path.read_text()), workdirs.load_model(str(workdir))
    _, head = workdirs.load_method(str(workdir), "sra", "ema", 20)
    saved["config"]["sra"]["weight"] = 0.2 if had_head else 0.0
    saved["data"]["num_examples"] = 0
    path.write_text(json.dumps(saved))
    params = {**trained.params, **({"head": head} if had_head else {})}
    shutil.rmtree(workdir / "checkpoints")
    with CheckpointStore(workdir) as store:
        trees = {"step": jnp.int32(0), "params": params, "ema": params}
        store.save(0, trees, {"config": saved["config"]})
    flags = digits(workdir, **CONFIG | {"train__steps": 1}, method__sra__weight=weight)
    result = forks.run("train", flags)
    assert (result.code, result.err) == (0, ""), result
    assert f"the checkpoint lacks {lacks}: starting with fresh ones" in result.out
