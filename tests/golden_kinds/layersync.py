"""Compares a golden file of LayerSync with ours.

The release runs in SiT's reversed time. Names are the file's keys.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from golden import FEATURES, LOSSES, SIT_GRADIENTS, Comparison, Golden, compare, compare_worst

from sra_jax.conditioning import ClassLabels, drop
from sra_jax.methods import Example, Networks
from sra_jax.methods.layersync import LayerSync
from sra_jax.methods.schedule import WeightSchedule
from sra_jax.models import DiT, Pass
from sra_jax.processes import Interpolant
from sra_jax.torch_weights import from_torch, to_torch
from sra_jax.torch_weights.original_sit import reverse_time
from sra_jax.training.objective import Objective
from sra_jax.training.step import accumulate_gradients

LABEL_DROPOUT = 0.1
PATHS = {"linear": "linear", "gvp": "cosine"}  # in the file: ours


def compare_path(golden: Golden, prefix: str) -> Iterator[Comparison]:
    """Noisy latents, features, velocity, losses and, on the linear path, gradients."""
    if f"{prefix}/x_t" not in golden:
        return
    meta, config = golden.meta, golden.config
    params = from_torch(reverse_time(golden.state_dict("params"), config), config)
    method = LayerSync(
        weak_block=meta["weak_block"],
        strong_block=meta["strong_block"],
        weight=WeightSchedule(meta["weight"]),
    )
    process, trunk = Interpolant(PATHS[prefix]), DiT(config)
    yield from compare_draws(golden, prefix)
    t, condition = golden.jax(f"{prefix}/t"), {"labels": golden.jax(f"{prefix}/labels", jnp.int32)}
    x, noise = golden.images("data/latents"), golden.images(f"{prefix}/draw/noise")
    example = Example(x, condition, noise, t, {}, {"layersync": {}})

    x_t = process.corrupt(x, noise, t)
    yield compare(f"{prefix}/x_t", x_t, golden.images(f"{prefix}/x_t"), FEATURES)
    apply = jax.jit(trunk.apply, static_argnames="how")
    out = apply(params["trunk"], x_t, t, condition, how=Pass(taps="all"))
    for block, feature in out.features.items():
        key = f"{prefix}/block_{block:02}"
        yield compare(key, feature, golden[key], FEATURES)
    for key, sign in ((f"{prefix}/velocity", 1), (f"{prefix}/velocity_sit", -1)):
        yield compare(key, sign * out.prediction, golden.images(key), FEATURES)

    def loss_of(weak, strong):
        network = partial(trunk.apply, params["trunk"])
        pair = replace(method, weak_block=weak, strong_block=strong)
        terms = pair.terms(Networks(network, network, {}, ()), process, example, out)
        return terms.losses["layersync"]

    key, ours = f"{prefix}/loss/per_example/layer_sync", loss_of(*method.taps())
    yield compare(key, ours, golden[key], LOSSES)
    key = f"{prefix}/loss/cosine"
    yield compare(key, -ours, golden[key].mean(1, dtype=np.float64), LOSSES)
    key = f"{prefix}/loss/multiple_each"
    ours = np.stack([loss_of(*pair) for pair in meta["pairs"]])
    yield compare(key, ours, golden[key].mean(2, dtype=np.float64), LOSSES)
    key = f"{prefix}/loss/multiple_release"  # the last pair alone
    yield compare(key, ours[-1], golden[key].mean(1, dtype=np.float64), LOSSES)
    key = f"{prefix}/loss/generation"
    generation = process.generation_loss(out.prediction, x, noise, t)
    yield compare(key, generation, golden[key], LOSSES)

    objective = Objective(trunk, process, config.conditioning, (method,))
    total = partial(objective, ema=params, state={}, step=0)
    gradient, (metrics, _) = jax.jit(lambda p: accumulate_gradients(total, p, example, 1))(params)
    key = f"{prefix}/loss/total"
    yield compare(key, metrics["loss"], golden[key], LOSSES)
    if recorded := golden.state_dict(f"{prefix}/grad"):
        yield compare_gradient(golden, gradient, recorded, f"{prefix}/grad")


def compare_draws(golden: Golden, prefix: str) -> Iterator[Comparison]:
    """Our times and dropped labels, from the release's draws."""
    yield compare(
        f"{prefix}/t", 1 - golden[f"{prefix}/draw/t_sit"], golden[f"{prefix}/t"], FEATURES
    )
    labels = ClassLabels(golden.meta["num_classes"])
    dropped = golden.jax(f"{prefix}/draw/label_drop_u") < LABEL_DROPOUT
    ours = drop(labels, {"labels": golden.jax("data/labels", jnp.int32)}, dropped)["labels"]
    yield compare(f"{prefix}/labels", ours, golden[f"{prefix}/labels"], FEATURES)


def compare_gradient(golden, gradient, recorded, name) -> Comparison:
    """The gradient in PyTorch's layout.

    `reverse_time` is linear in the tensors that it changes. Our gradient in them is therefore
    compared with theirs, folded in the same way.
    """
    ours = to_torch(gradient, golden.config)
    recorded = reverse_time(recorded, golden.config)
    ours = {key: np.asarray(ours[key]) for key in recorded}
    return compare_worst(name, ours, recorded, SIT_GRADIENTS)


KEYS = frozenset({"linear/velocity_sit", "linear/loss/per_example/layer_sync"})
GROUPS = {prefix: partial(compare_path, prefix=prefix) for prefix in PATHS}
