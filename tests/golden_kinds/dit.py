"""Compares a golden file of DiT with ours.

Every group yields the comparisons of one part of the file. Names are the file's keys.
"""

from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from golden import (
    DIT_GRADIENTS,
    FEATURES,
    LOSSES,
    VB_AT_0,
    Comparison,
    Golden,
    Jitted,
    compare,
)
from golden_kinds.shared import (
    compare_gradient,
    make_example,
    make_gradient,
    make_objective,
    sample,
)

from sra_jax.methods import Example, Networks
from sra_jax.models import Pass
from sra_jax.processes import DDPM
from sra_jax.sampling.guidance import Guidance


def compare_forward(golden: Golden) -> Iterator[Comparison]:
    """The output (noise and variance), and the feature of the student's block."""
    block, model = golden.meta["student_block"], Jitted(golden.config)
    t, labels = golden.jax("fwd/t", jnp.int32), golden.jax("fwd/y", jnp.int32)
    params = golden.params("student")
    out = model(params, golden.images("fwd/x"), t, labels, taps=(block,))
    yield compare("fwd/output", out.prediction, golden.images("fwd/output"), FEATURES)
    key = "fwd/block_student"
    yield compare(key, out.features[block], golden[key], FEATURES)


def compare_losses(golden: Golden) -> Iterator[Comparison]:
    """The terms of the generation loss, their sum, and the alignment loss, for both draws."""
    student, teacher, process = golden.params("student"), golden.params("teacher"), DDPM()
    objective = make_objective(golden, process)
    ((sra,), trunk) = objective.methods, objective.trunk

    @jax.jit
    def losses(student, teacher, example):
        x, noise, t = example.x, example.noise, example.t
        x_t = process.corrupt(x, noise, t)
        out = trunk.apply(student["trunk"], x_t, t, example.condition, Pass(taps=sra.taps()))
        mse, vb = process.loss_terms(out.prediction, x, noise, t)
        generation = process.generation_loss(out.prediction, x, noise, t)
        networks = [partial(trunk.apply, params["trunk"]) for params in (student, teacher)]
        nets = Networks(*networks, student["method"]["sra"], ())
        alignment = sra.terms(nets, process, example, out).losses["alignment"]
        return {"mse": mse, "vb": vb, "loss": generation}, alignment.mean()

    for draw in ("loss", "loss_for_grad"):
        if f"{draw}/t" not in golden:
            continue
        terms, alignment = losses(student, teacher, drawn_example(golden, draw))
        first = golden[f"{draw}/t"] == 0  # there float32 leaves vb few digits
        for name, ours in terms.items():
            key = f"{draw}/{name}"
            ours, recorded = np.asarray(ours), golden[key]
            if name == "mse" or not first.any():
                yield compare(key, ours, recorded, LOSSES)
                continue
            if not first.all():
                yield compare(f"{key}[t>=1]", ours[~first], recorded[~first], LOSSES)
            yield compare(f"{key}[t=0]", ours[first], recorded[first], VB_AT_0)
        yield compare(f"{draw}/align_loss", alignment, golden[f"{draw}/align_loss"], LOSSES)


def drawn_example(golden: Golden, draw: str) -> Example:
    """The draws below `loss/` or `loss_for_grad/`."""
    t, gap_max = golden.jax(f"{draw}/t", jnp.int32), golden.meta["gap_max"]
    u = (golden.jax(f"{draw}/gap") + 0.5) / gap_max  # floor(gap_max u) is the recorded gap
    t_teacher = DDPM().earlier(t, u, gap_max / golden.meta["diffusion_steps"])
    labels, noise = golden.jax("loss/labels", jnp.int32), golden.images("loss/noise")
    return make_example(golden.images("loss/latents"), labels, noise, t, t_teacher)


def compare_first_gradient(golden: Golden) -> Iterator[Comparison]:
    """The first step's gradient."""
    differentiate = jax.jit(make_gradient(golden, DDPM()))
    example = drawn_example(golden, "loss_for_grad")
    student, teacher = golden.params("student"), golden.params("teacher")
    gradient, _ = differentiate(student, teacher, example, step=0)
    yield compare_gradient(golden, gradient, DIT_GRADIENTS)


def compare_samples(golden: Golden) -> Iterator[Comparison]:
    """The times of the respaced chain, and DDPM samples of the teacher without and with
    guidance."""
    model, params = Jitted(golden.config), golden.params("teacher")
    process, meta = DDPM(), golden.meta
    times = process.respace(meta["num_steps"]).timesteps
    yield compare("sample/timesteps", times, np.sort(golden["sample/timesteps"]), FEATURES)
    guided = Guidance(meta["cfg_scale"], channels=meta["cfg_channels"])
    for name, guidance in (("ddpm", Guidance()), ("ddpm_cfg", guided)):
        key = f"sample/{name}"
        if key in golden:
            ours = sample(golden, model, params, process, "ddpm", guidance, "sample/noise")
            yield compare(key, ours, golden.images(key), FEATURES)


KEYS = frozenset({"fwd/y", "fwd/output", "fwd/block_student"})
GROUPS = {
    "forward": compare_forward,
    "losses": compare_losses,
    "gradients": compare_first_gradient,
    "samples": compare_samples,
}
