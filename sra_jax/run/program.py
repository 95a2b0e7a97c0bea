"""The compiled program of a run: the train step with its shardings, for whatever mesh there is.

`sra-jax train` runs it. `sra-jax compile` compiles it ahead of time for TPU slices that this
machine does not have.
"""

import dataclasses
from typing import NamedTuple

import jax
import numpy as np

from sra_jax.config.schema import Experiment
from sra_jax.core.shapes import FieldSpec
from sra_jax.data.spec import LatentSpec
from sra_jax.distributed.hardware import compiler_options
from sra_jax.distributed.mesh import batch_sharding, replicated
from sra_jax.distributed.sharding import abstract, tree_shardings
from sra_jax.training.flops import StepFlops, step_flops
from sra_jax.training.objective import Objective
from sra_jax.training.optimizer import make_optimizer
from sra_jax.training.state import init_state
from sra_jax.training.step import make_train_step


class TrainProgram(NamedTuple):
    """`init()` makes the state already sharded; `step(state, batch)` donates the state.

    `state` and `batch` are their shapes with shardings; `flops` counts a step for one image.
    """

    init: jax.stages.Wrapped
    step: jax.stages.Wrapped
    state: jax.ShapeDtypeStruct
    batch: dict[str, jax.ShapeDtypeStruct]
    flops: StepFlops


def make_program(experiment: Experiment, data: LatentSpec, mesh: jax.sharding.Mesh) -> TrainProgram:
    """The program of `experiment` on latents as `data` says, over `mesh`.

    Raises:
      InputError: the model does not divide over the mesh.
    """
    objective = experiment.objective(mesh)
    optimizer = make_optimizer(experiment.optimizer)

    def init():
        return init_state(objective, optimizer, experiment.train.seed)

    shapes = jax.eval_shape(init)
    shardings, rows = tree_shardings(shapes, mesh, objective.rules), batch_sharding(mesh)
    size = experiment.train.batch_size
    fields = {"moments": FieldSpec(data.moments_shape, data.dtype)} | objective.fields()
    batch = {
        name: jax.ShapeDtypeStruct((size, *field.shape), np.dtype(field.dtype))
        for name, field in fields.items()
    }
    step = make_train_step(objective, optimizer, experiment.step_config(data.scale, data.shift))
    return TrainProgram(
        init=jax.jit(init, out_shardings=shardings),
        step=jax.jit(
            step,
            in_shardings=(shardings, rows),
            out_shardings=(shardings, replicated(mesh)),
            donate_argnums=0,
            compiler_options=compiler_options(mesh.devices.flat[0].platform),
        ),
        state=abstract(shapes, shardings),
        batch=abstract(batch, rows),
        flops=step_flops(
            *(_counted(objective, remat) for remat in ("none", experiment.model.remat))
        ),
    )


def _counted(objective: Objective, remat: str) -> Objective:
    """The objective with a trunk whose operations can be counted: plain attention, no sharding."""
    config = dataclasses.replace(objective.trunk.config, remat=remat, attention="xla")
    return dataclasses.replace(objective, trunk=type(objective.trunk)(config))
