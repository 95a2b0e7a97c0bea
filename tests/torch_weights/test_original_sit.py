"""The original SiT, in our time: the same flow as a plain PyTorch model's in its own."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import torch
from golden import FEATURES, ROUNDING, random_state_dict, relative_error
from published import as_original_sit, original_sit_velocity, tensors
from tiny import vary

from sra_jax.conditioning import ClassLabels
from sra_jax.models import DiT, DiTConfig, LatentLayout
from sra_jax.processes import Interpolant
from sra_jax.sampling.guidance import Guidance
from sra_jax.sampling.solvers import make_steps, solve
from sra_jax.torch_weights import from_torch
from sra_jax.torch_weights.original_sit import reverse_time

CONFIG = DiTConfig(
    LatentLayout(8, 8, 4, patch=2), ClassLabels(5), outputs=1, width=48, depth=3, num_heads=4
)
DOUBLED = vary(CONFIG, outputs=2)  # its last layer is as large as SiT's there


def inputs(seed=0, batch=3):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(batch, 4, 8, 8)).astype(np.float32)
    return x, rng.uniform(size=batch).astype(np.float32), np.array([0, 5, 2])


def channels_last(x):
    return np.moveaxis(np.asarray(x), 1, -1)


def test_the_velocity_is_that_of_the_other_time_negated():
    """In float64 throughout but for our model."""
    state = random_state_dict(DOUBLED, seed=1, head=False)
    x, t, y = inputs()
    theirs = original_sit_velocity(
        tensors(state, torch.float64),
        torch.tensor(x, dtype=torch.float64),
        1 - torch.tensor(t, dtype=torch.float64),
        torch.tensor(y),
        CONFIG.num_heads,
    )
    params = from_torch(reverse_time(state, CONFIG), CONFIG)
    trunk, condition = DiT(CONFIG), {"labels": y}
    ours = trunk.apply(params["trunk"], channels_last(x), t, condition).prediction
    assert relative_error(ours, -channels_last(theirs)) < FEATURES


def test_a_trajectory_is_the_same():
    """Euler from noise to data, 20 steps, with random weights that bend it."""
    state = random_state_dict(DOUBLED, seed=2, head=False)
    z, _, y = inputs(seed=3)
    x, weights = torch.tensor(z), tensors(state)
    times = torch.linspace(0, 1, 21)
    for start, end in pairwise(times):
        t = start.expand(len(x))
        x = x + (end - start) * original_sit_velocity(
            weights, x, t, torch.tensor(y), CONFIG.num_heads
        )

    params = from_torch(reverse_time(state, CONFIG), CONFIG)
    trunk, process = DiT(CONFIG), Interpolant()
    condition = {"labels": jnp.asarray(y)}

    @jax.jit
    def sample(z):
        def predict(x, t):
            times = jnp.full(len(x), t)
            return trunk.apply(params["trunk"], x, times, condition).prediction

        steps = make_steps(process, "euler", 20)
        return solve(process, steps, lambda guided: predict, Guidance(1.0), None, z)

    ours = sample(channels_last(z))
    assert relative_error(ours, channels_last(z)) > 0.1
    assert relative_error(ours, channels_last(x)) < 1e-4


def test_turning_our_weights_around_and_back_changes_nothing():
    state = random_state_dict(CONFIG, seed=4, head=False)
    there = as_original_sit(state, CONFIG.layout.patch, CONFIG.layout.channels)
    assert there["final_layer.linear.weight"].shape == (32, 48)
    back = reverse_time(there, CONFIG)
    assert set(back) == set(state)
    for name, array in state.items():
        if name == "t_embedder.mlp.0.weight":
            assert relative_error(back[name], array) < ROUNDING
        else:
            np.testing.assert_array_equal(back[name], array)


def test_a_model_without_variance_is_turned_too():
    state = random_state_dict(CONFIG, seed=5, head=False)
    back = reverse_time(state, CONFIG)
    np.testing.assert_array_equal(
        back["final_layer.linear.bias"], -state["final_layer.linear.bias"]
    )
