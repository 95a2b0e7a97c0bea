"""What the comparisons of SiT and DiT share: models, the train step, samples."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from golden import Comparison, Golden, Jitted, compare_worst

from sra_jax.methods import SRA, Example
from sra_jax.methods.schedule import WeightSchedule
from sra_jax.models import DiT
from sra_jax.processes import Process
from sra_jax.sampling.guidance import Guidance, make_predictors
from sra_jax.sampling.solvers import make_steps, solve
from sra_jax.torch_weights import to_torch
from sra_jax.training.objective import Objective
from sra_jax.training.step import accumulate_gradients


def make_objective(golden: Golden, process: Process, **method: Any) -> Objective:
    """SRA between the file's blocks; `method` overrides its fields."""
    meta = golden.meta
    blocks = {"student_block": meta["student_block"], "teacher_block": meta["teacher_block"]}
    sra = SRA(weight=WeightSchedule(meta["align_weight"]), **blocks | method)
    return Objective(DiT(golden.config), process, golden.config.conditioning, (sra,))


def make_gradient(
    golden: Golden, process: Process, microbatches: int = 1
) -> Callable[..., tuple[Any, dict]]:
    """The gradient of the loss: (student, teacher, example, step) -> (gradient, metrics)."""
    objective = make_objective(golden, process)

    def gradient(student, teacher, example, step):
        loss = partial(objective, ema=teacher, state={}, step=step)
        found, (metrics, _) = accumulate_gradients(loss, student, example, microbatches)
        return found, metrics

    return gradient


def make_example(x, labels, noise, t, t_teacher) -> Example:
    """An example of which SRA has drawn the teacher's times [B]."""
    return Example(x, {"labels": labels}, noise, t, {}, {"sra": {"t_teacher": t_teacher}})


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
    condition, null = {"labels": golden.jax("sample/labels", jnp.int32)}, golden.config.conditioning
    steps = make_steps(process, solver, golden.meta["num_steps"])

    @jax.jit
    def from_noise(params, z):
        network = partial(model.apply, params["trunk"])
        predictors = make_predictors(network, guidance, null, condition)
        return solve(process, steps, predictors, guidance, lambda i: noise[i], z)

    return from_noise(params, golden.images("sample/z"))
