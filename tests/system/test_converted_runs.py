"""A run of converted weights trains, samples and is told of like any other."""

import argparse
import dataclasses
import json
import logging
import runpy
from functools import partial

import jax
import numpy as np
import pytest
import torch
from commands import REPOSITORY
from converted import converted, loaded, loaded_head
from golden import random_state_dict
from published import as_original_sit, tensors, training_checkpoint, without_head
from safetensors.numpy import save_file as save_numpy
from tiny import TINY, vary

from sra_jax.checkpoints.store import CheckpointStore
from sra_jax.data.records import LatentSpec, write_latents
from sra_jax.run import directory as workdirs
from sra_jax.torch_weights.imported import latent_spec


def data_of(path, records=24, **changes):
    """A data set of random latents that fits the golden models."""
    fields = {
        "codec": "sd_vae",
        "scale": 0.18215,
        "shift": 0.0,
        "latent_shape": (8, 8, 4),
        "resolution": 64,
        "image_channels": 3,
        "num_classes": 10,
    }
    moments = np.random.default_rng(0).uniform(0.1, 1, (records, 8, 8, 8)).astype(np.float16)
    spec = LatentSpec(**(fields | changes))
    write_latents(path, spec, [[(moments, np.arange(records) % 10)]])
    return path


SRA_FIELDS = ("weight", "student_block", "teacher_block")


def train_flags(workdir, data, *more):
    config = json.loads((workdir / "config.json").read_text())["config"]
    model, sra = config["model"], config["method"].get("sra", {"weight": 0})
    kind = {"interpolant": "sit", "ddpm": "dit"}[config["process"]["name"]]
    return [
        f"--config={REPOSITORY}/configs/{kind}_sra.py:S/2",
        f"--workdir={workdir}",
        *(f"--config.model.{k}={model[k]}" for k in ("width", "depth", "num_heads")),
        *(f"--config.method.sra.{k}={sra.get(k, 1)}" for k in SRA_FIELDS),
        f"--config.data.path={data}",
        "--config.data.latent_shape=(8,8,4)",
        "--config.data.num_classes=10",
        "--config.train.batch_size=8",
        "--config.train.log_every=1",
        *more,
    ]


def test_training_goes_on_from_converted_weights(forks, tmp_path, sit):
    """With a fresh optimiser, and any config of the same model; then it is a run like any other."""
    torch.save(
        training_checkpoint(sit.state_dict("student"), sit.state_dict("teacher"), {}),
        tmp_path / "x.pt",
    )
    workdir, data = converted(tmp_path / "x.pt", tmp_path / "run"), data_of(tmp_path / "data")
    flags = train_flags(
        workdir, data, "--config.train.steps=2", "--config.optimizer.learning_rate=1e-3"
    )
    result = forks.run("train", flags)
    assert (result.code, result.err) == (0, ""), result
    assert "the checkpoint lacks opt_state: starting with fresh ones" in result.out
    assert "step 2/2" in result.out
    with CheckpointStore(workdir) as store:
        assert store.steps() == [0, 2]
    refused = forks.run("train", [*flags, "--config.train.batch_size=4", "--config.train.steps=4"])
    assert refused.code == 2 and "train.batch_size was 8, is 4" in refused.err


def test_training_refuses_what_converted_weights_are_not(forks, tmp_path, sit):
    torch.save(tensors(without_head(sit.state_dict("student"))), tmp_path / "x.pt")
    workdir = converted(tmp_path / "x.pt", tmp_path / "run")
    before = (workdir / "config.json").read_bytes()
    data = data_of(tmp_path / "data")
    other = data_of(tmp_path / "other", scale=0.5)
    for change, part in (
        (["--config.model.width=64"], "config.model.width was 32, is 64"),
        ([f"--config.data.path={other}"], "data.scale was 0.18215, is 0.5"),
        (["--config.process.path=cosine"], "process.path was linear, is cosine"),
    ):
        result = forks.run("train", train_flags(workdir, data, "--config.train.steps=1", *change))
        assert result.code == 2 and part in result.err, result
        assert len(result.err.splitlines()) == 1
    assert (workdir / "config.json").read_bytes() == before
    result = forks.run("train", train_flags(workdir, data, "--config.train.steps=1"))
    assert (result.code, result.err) == (0, "")


def test_a_model_without_a_head_starts_with_a_fresh_one(forks, tmp_path, dit):
    torch.save(tensors(without_head(dit.state_dict("student"))), tmp_path / "x.pt")
    workdir, data = converted(tmp_path / "x.pt", tmp_path / "run"), data_of(tmp_path / "data")
    assert loaded_head(workdir) is None
    flags = train_flags(
        workdir, data, "--config.train.steps=1", "--config.optimizer.learning_rate=1e-9"
    )
    result = forks.run("train", [*flags, "--config.method.sra.weight=0.2"])
    assert (result.code, result.err) == (0, "") and "alignment" in result.out
    lacks = "the checkpoint lacks ema_sra, opt_state, params_sra: starting with fresh ones"
    assert lacks in result.out
    head = loaded_head(workdir, step=1)
    kernel = head["fc1"]["kernel"]
    limit = np.sqrt(6 / sum(kernel.shape))  # xavier's
    assert 0.9 * limit < np.abs(kernel).max() <= limit + 1e-6
    student = loaded_head(workdir, "student", step=1)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=0, atol=1e-6), student, head)


@pytest.mark.parametrize("kind", ["sit", "dit"])
def test_a_model_with_a_head_can_be_trained_without_sra(request, forks, tmp_path, kind):
    golden = request.getfixturevalue(kind)
    torch.save(tensors(golden.state_dict("student")), tmp_path / "x.pt")
    workdir, data = converted(tmp_path / "x.pt", tmp_path / "run"), data_of(tmp_path / "data")
    flags = train_flags(workdir, data, "--config.train.steps=1")
    result = forks.run("train", [*flags, "--config.method.sra.weight=0"])
    assert (result.code, result.err) == (0, "") and "alignment" not in result.out
    assert "the checkpoint lacks opt_state: starting with fresh ones" in result.out
    assert loaded_head(workdir, step=1) is None
    with CheckpointStore(workdir) as store:
        assert store.names(0) >= {"params_sra", "ema_sra"}
        assert store.names(1) == {"step", "params", "ema", "opt_state"}


def test_sample_takes_a_converted_run(forks, tmp_path, sit):
    """Of pixels: an SD-VAE's weights are not here."""
    state = sit.state_dict("student")
    state["x_embedder.proj.weight"] = state["x_embedder.proj.weight"][:, :3]
    for name in ("final_layer.linear.weight", "final_layer.linear.bias"):
        array = state[name].reshape(4, 4, *state[name].shape[1:])[:, :3]
        state[name] = array.reshape(12, *array.shape[2:])
    torch.save(tensors(state), tmp_path / "x.pt")
    result = forks.run(
        "convert", [f"--source={tmp_path}/x.pt", f"--out={tmp_path}/run", "--num_heads=4"]
    )
    assert (result.code, result.err) == (0, ""), result
    assert "recognised SRA's SiT: depth 4, width 32, 4 heads" in result.out
    assert f"next: python -m sra_jax sample --workdir={tmp_path}/run --out=samples" in result.out
    flags = [
        f"--workdir={tmp_path}/run",
        f"--out={tmp_path}/o.npz",
        "--num=2",
        "--solver_steps=2",
        "--solver=euler",
    ]
    result = forks.run("sample", flags)
    assert (result.code, result.err) == (0, ""), result
    assert np.load(tmp_path / "o.npz")["arr_0"].shape == (2, 8, 8, 3)


@pytest.mark.parametrize("head", [True, False])
@pytest.mark.parametrize("kind", ["sit", "dit"])
def test_the_command_that_trains_it_further_is_told(tmp_path, kind, head, caplog):
    """Of a published shape, and it is accepted: no refusal but that the data are missing."""
    caplog.set_level(logging.INFO, logger="sra_jax")
    model = vary(TINY, kind=kind, side=32, patch=2, channels=4, num_classes=1000)
    model = dataclasses.replace(model, width=384, depth=12, num_heads=6)
    save_numpy(random_state_dict(model, 0, head), tmp_path / "x.safetensors")
    converted(tmp_path / "x.safetensors", tmp_path / "run", num_heads=None)
    told = [line.removeprefix("next: python -m sra_jax ") for line in caplog.messages]
    told = {line.split()[0]: line.split()[1:] for line in told if "--workdir=" in line}
    assert told["sample"][1:] == ["--vae=FOLDER", "--out=samples.npz"]
    assert told["evaluate"][1:] == ["--vae=FOLDER", "--reference=FILE", "--inception=FILE"]
    assert told["probe"] == [f"--workdir={tmp_path}/run", "--data=DIR"]
    (path,) = [flag.removeprefix("--config=") for flag in told["train"] if "--config=" in flag]
    file, _, argument = path.partition(":")
    config = runpy.run_path(str(REPOSITORY / file))["get_config"](argument).to_dict()
    workdirs.save_and_check(
        workdirs.open_directory(str(tmp_path / "run")), config, latent_spec(model)
    )


def test_the_guidance_is_the_release_s(tmp_path, sit):
    state = as_original_sit(sit.state_dict("student"), 2, 4)
    torch.save(tensors(state), tmp_path / "x.pt")
    trained, _ = loaded(converted(tmp_path / "x.pt", tmp_path / "run"))
    assert trained.experiment.sampling.guidance_channels == 3
    torch.save(
        {"ema": tensors(state), "args": argparse.Namespace(path_type="GVP")}, tmp_path / "y.pt"
    )
    trained, _ = loaded(converted(tmp_path / "y.pt", tmp_path / "other"))
    assert trained.experiment.process.path == "cosine"
    converted(tmp_path / "other", tmp_path / "z.safetensors")  # which tells the path
    trained, _ = loaded(converted(tmp_path / "z.safetensors", tmp_path / "third"))
    assert trained.experiment.process.path == "cosine"
