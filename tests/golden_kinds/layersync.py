"""Compares a golden file of LayerSync with ours.

The release runs in SiT's reversed time. Names are the file's keys.
"""

from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from golden import FEATURES, LOSSES, SIT_GRADIENTS, Comparison, Golden, compare, compare_worst

from sra_jax.methods import Example, Networks
from sra_jax.methods.layersync import LayerSync
from sra_jax.methods.schedule import WeightSchedule
from sra_jax.models import DiT, Pass
from sra_jax.processes import Interpolant
from sra_jax.torch_weights import from_torch, to_torch
from sra_jax.torch_weights.original_sit import reverse_time
from sra_jax.training.objective import Objective
from sra_jax.training.step import accumulate_gradients

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
    key = f"{prefix}/velocity"
    yield compare(key, out.prediction, golden.images(key), FEATURES)

    network = partial(trunk.apply, params["trunk"])
    loss = method.terms(Networks(network, network, {}, ()), process, example, out)
    key = f"{prefix}/loss/per_example/layer_sync"
    yield compare(key, loss.losses["layersync"], golden[key], LOSSES)
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
