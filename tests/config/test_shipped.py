"""Every config file in configs/, shrunk: its train step runs once and gives a finite loss."""

import importlib.util

import jax
import numpy as np
import pytest
from commands import REPOSITORY

from sra_jax.config.schema import Experiment
from sra_jax.data.spec import LatentSpec
from sra_jax.distributed.mesh import make_mesh
from sra_jax.run.program import make_program

CONFIGS = sorted(path.stem for path in (REPOSITORY / "configs").glob("*.py"))
ARGUMENTS = {
    "digits": ("sit", "dit"),
    "shapes": ("sit", "dit"),
    "sit_sra": ("S/2", "XL/2,recipe=release,res=512", "B/4,method=none"),
    "dit_sra": ("S/2", "L/8,recipe=cosine"),
}
BATCH = 4


def shrunk(name, argument):
    """The config with narrow blocks and a small latent; depth, method and process stay."""
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / "configs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config(argument)
    config.model.update(width=16, num_heads=2)
    side = 2 * config.model.patch_size
    config.data.latent_shape = (side, side, config.data.latent_shape[2])
    config.train.batch_size = BATCH
    return config.to_dict()


def test_every_config_file_is_tried():
    assert sorted(ARGUMENTS) == CONFIGS


@pytest.mark.parametrize(
    ("name", "argument"), [(n, a) for n, arguments in ARGUMENTS.items() for a in arguments]
)
def test_a_step_of_the_shrunk_config_is_finite(name, argument):
    experiment = Experiment.from_dict(shrunk(name, argument))
    shape, classes = experiment.data.latent_shape, experiment.data.num_classes
    data = LatentSpec("pixels", 1.0, 0.0, shape, shape[0], shape[2], classes)
    program = make_program(experiment, data, make_mesh(experiment.mesh, jax.devices()[:1]))
    rng = np.random.default_rng(0)
    batch = {
        "moments": rng.uniform(size=program.batch["moments"].shape).astype(data.dtype),
        "labels": rng.integers(0, classes, BATCH).astype(np.int32),
    }
    state, metrics = program.step(program.init(), batch)
    assert int(state.step) == 1
    assert all(np.isfinite(value) for value in metrics.values()), metrics
    assert program.flops.useful > 0 and program.flops.recomputed >= 0
