"""Compares a golden file of SiT with ours.

Every group yields the comparisons of one part of the file. Names are the file's keys.
"""

from collections.abc import Iterator
from functools import partial
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from golden import (
    AFTER_THREE_STEPS,
    FEATURES,
    LOSSES,
    SIT_GRADIENTS,
    Comparison,
    Golden,
    Jitted,
    compare,
    compare_worst,
)
from golden_kinds.shared import (
    compare_gradient,
    make_example,
    make_gradient,
    make_objective,
    sample,
)

from sra_jax.methods import Example, Networks
from sra_jax.methods.distances import DISTANCES
from sra_jax.models import DiT, Pass
from sra_jax.models.layers import MLP
from sra_jax.processes import Interpolant
from sra_jax.sampling.guidance import Guidance
from sra_jax.torch_weights import to_torch
from sra_jax.training.optimizer import OptimizerConfig, make_optimizer
from sra_jax.training.state import TrainState
from sra_jax.training.step import apply_gradients

GAP_MAX = 0.2

DISTANCE_NAMES = {  # in the file: ours
    "sml1": "smooth_l1",
    "l1": "l1",
    "l2": "l2",
    "cosine_over_features": "cosine",
    "cosine_over_tokens": "cosine_over_tokens",
}

SAMPLES = {  # name: solver, path, guidance
    "euler": ("euler", "linear", Guidance()),
    "heun": ("heun", "linear", Guidance()),
    "euler_cfg": ("euler", "linear", Guidance(1.8, 0.0, 0.65)),
    "heun_cfg": ("heun", "linear", Guidance(2.5, 0.15, 0.75)),
    "sde": ("sde", "linear", Guidance()),
    "sde_cfg": ("sde", "linear", Guidance(1.8, 0.0, 0.7)),
    "sde_cosine": ("sde", "cosine", Guidance()),
}


def compare_forward(golden: Golden) -> Iterator[Comparison]:
    """The features of every block, the velocity, and the projected feature."""
    model, params = Jitted(golden.config), golden.params("student")
    labels = golden.jax("fwd/y", jnp.int32)
    out = model(params, golden.images("fwd/x"), golden["fwd/t"], labels, taps="all")
    for block, feature in out.features.items():
        key = f"fwd/block_{block:02}"
        yield compare(key, feature, golden[key], FEATURES)
    yield compare("fwd/velocity", out.prediction, golden.images("fwd/velocity"), FEATURES)
    feature = out.features[golden.meta["student_block"]]
    yield compare("fwd/projected", project(params, feature), golden["fwd/projected"], FEATURES)


def compare_losses(golden: Golden) -> Iterator[Comparison]:
    """The generation loss of every path and weighting, and every distance recorded of it."""
    student, teacher = golden.params("student"), golden.params("teacher")
    x, noise = golden.images("loss/latents"), golden.images("loss/noise")
    labels, u_gap = golden.jax("loss/labels", jnp.int32), golden.jax("loss/u_gap")
    trunk, meta = DiT(golden.config), golden.meta

    @partial(jax.jit, static_argnums=0)
    def losses(process, student, teacher, t):
        t_teacher = process.earlier(t, u_gap, GAP_MAX)
        example = make_example(x, labels, noise, t, t_teacher)
        how = Pass(taps=(meta["student_block"],))
        x_t = process.corrupt(x, noise, t)
        out = trunk.apply(student["trunk"], x_t, t, example.condition, how)
        networks = [partial(trunk.apply, params["trunk"]) for params in (student, teacher)]
        nets = Networks(*networks, student["method"]["sra"], ())
        found = {}
        for distance in DISTANCES:
            (sra,) = make_objective(golden, process, distance=distance).methods
            found[distance] = sra.terms(nets, process, example, out).losses["alignment"]
        return process.generation_loss(out.prediction, x, noise, t), found

    for path, weighting in product(("linear", "cosine"), ("uniform", "lognormal")):
        prefix = f"loss/{path}/{weighting}"
        if f"{prefix}/generation" not in golden:
            continue
        process, t = Interpolant(path), golden.jax("loss/u_time")
        if weighting == "lognormal":
            t = process.lognormal_time(golden.jax("loss/normal_time"))
        generation, distances = losses(process, student, teacher, t)
        key = f"{prefix}/generation"
        yield compare(key, generation, golden[key], LOSSES)
        for name, distance in DISTANCE_NAMES.items():
            key = f"{prefix}/{name}"
            if key in golden:
                yield compare_distance(key, distances[distance], golden[key])


def project(params: Any, feature: jax.Array) -> jax.Array:
    """SRA's head on a feature [B, N, D]."""
    width = feature.shape[-1]
    return MLP(2 * width, width, "silu", feature.dtype).apply(
        {"params": params["method"]["sra"]}, feature
    )


def compare_distance(key: str, ours: jax.Array, recorded: np.ndarray) -> Comparison:
    """A distance of each example [B] against a mean [], or against [B, D] or [B, N]."""
    if recorded.ndim == 0:
        return compare(key, np.asarray(ours, np.float64).mean(), recorded, LOSSES)
    return compare(key, ours, recorded.mean(1, dtype=np.float64), LOSSES)


def compare_steps(golden: Golden) -> Iterator[Comparison]:
    """The first step's gradient, then losses, gradient norms and parameters of all steps."""
    optimizer = make_optimizer(OptimizerConfig(learning_rate=golden.meta["lr"]))
    differentiate, ema_decay = make_gradient(golden, Interpolant()), golden.meta["ema_decay"]

    @jax.jit
    def step(state, example):
        gradient, metrics = differentiate(state.params, state.ema, example, state.step)
        metrics |= {"grad_norm": optax.tree.norm(gradient)}
        return apply_gradients(state, gradient, optimizer, ema_decay), gradient, metrics

    student, teacher = golden.params("student"), golden.params("teacher")
    state = TrainState(jnp.int32(0), student, teacher, jax.jit(optimizer.init)(student), {})
    history = []
    for i in range(len(golden["train/generation"])):
        state, gradient, metrics = step(state, step_example(golden, i))
        history.append(metrics)
        if i == 0:
            yield compare_gradient(golden, gradient, SIT_GRADIENTS)
    for name in ("generation", "alignment", "grad_norm"):
        key, ours = f"train/{name}", [float(metrics[name]) for metrics in history]
        tolerance = SIT_GRADIENTS if name == "grad_norm" else LOSSES
        yield compare(key, ours, golden[key], tolerance)
    for which, params in (("student", state.params), ("teacher", state.ema)):
        ours, prefix = to_torch(params, golden.config), f"after/{which}"
        yield compare_worst(prefix, ours, golden.state_dict(prefix), AFTER_THREE_STEPS)


def step_example(golden: Golden, i: int) -> Example:
    """The draws of step `i`."""
    t, u_gap = golden.jax(f"train/{i}/u_time"), golden.jax(f"train/{i}/u_gap")
    t_teacher = Interpolant().earlier(t, u_gap, GAP_MAX)
    labels, noise = golden.jax("loss/labels", jnp.int32), golden.images(f"train/{i}/noise")
    return make_example(golden.images("loss/latents"), labels, noise, t, t_teacher)


def compare_samples(golden: Golden) -> Iterator[Comparison]:
    """Samples of the teacher after the steps, by every solver recorded."""
    model, params = Jitted(golden.config), golden.params("after/teacher")
    for name, (solver, path, guidance) in SAMPLES.items():
        key = f"sample/{name}"
        if key in golden:
            process = Interpolant(path)
            ours = sample(golden, model, params, process, solver, guidance, "sample/sde_noise")
            yield compare(key, ours, golden.images(key), FEATURES)


KEYS = frozenset({"fwd/y", "fwd/velocity", "fwd/projected"})
GROUPS = {
    "forward": compare_forward,
    "losses": compare_losses,
    "gradients": compare_steps,
    "samples": compare_samples,
}
