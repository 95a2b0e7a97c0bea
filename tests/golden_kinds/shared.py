"""What the comparisons of SiT and DiT share: models, the train step, samples."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from golden import Comparison, Golden, Jitted, compare_worst

from sra_jax.methods.sra import SRAConfig, WeightSchedule
from sra_jax.models import DiffusionTransformer
from sra_jax.processes import Process
from sra_jax.sampling.guidance import Guidance, make_predictors
from sra_jax.sampling.solvers import make_steps, solve
from sra_jax.torch_weights import to_torch
from sra_jax.training.step import Objective, accumulate_gradients


def bind_models(model: Jitted, student: Any, teacher: Any) -> tuple[Callable, Callable, Callable]:
    """Student, teacher and the student's head, as `sra_loss` takes them."""
    return model.bind(student), model.bind(teacher), partial(model.project, student)


def make_method(golden: Golden) -> SRAConfig:
    """SRA between the file's blocks."""
    return SRAConfig(golden.meta["student_block"], golden.meta["teacher_block"])


def make_gradient(golden: Golden, process: Process) -> Callable[..., tuple[Any, dict]]:
    """The gradient of the loss: (student, teacher, example, step) -> (gradient, metrics)."""
    model, method = DiffusionTransformer(golden.config), make_method(golden)
    objective = Objective(model, process, method, WeightSchedule(golden.meta["align_weight"]))

    def gradient(student, teacher, example, step):
        loss = partial(objective, ema=teacher, step=step)
        return accumulate_gradients(loss, student, example, microbatches=1)

    return gradient


def compare_gradient(golden: Golden, gradient: Any, tolerance: float) -> Comparison:
    """The first step's gradient, in PyTorch's layout. The position table must not have any."""
    ours = to_torch(gradient, golden.config)
    if not ours["pos_embed"].any():
        del ours["pos_embed"]  # the file has none either
    return compare_worst("grad", ours, golden.state_dict("grad"), tolerance)


def sample(
    golden: Golden,
    model: Jitted,
    params: Any,
    process: Process,
    solver: str,
    guidance: Guidance,
    noise: str,
) -> jax.Array:
    """A sample [B, H, W, C] from the file's start noise; `noise` is the key of the steps' noise."""
    noise = jnp.asarray(golden.images(noise))
    labels, null = golden.jax("sample/labels", jnp.int32), golden.config.num_classes
    steps = make_steps(process, solver, golden.meta["num_steps"])

    @jax.jit
    def from_noise(params, z):
        predictors = make_predictors(model.bind(params), guidance, null, labels)
        return solve(process, steps, predictors, guidance, lambda i: noise[i], z)

    return from_noise(params, golden.images("sample/z"))
