"""A run goes on with PyTorch's moments as PyTorch would go on."""

import jax
import numpy as np
import optax
import pytest
import torch
from golden import random_state_dict, worst_error
from published import tensors
from tiny import TINY

from sra_jax.core.errors import InputError
from sra_jax.torch_weights import from_torch, to_torch
from sra_jax.torch_weights.adamw import adamw_from_torch
from sra_jax.training.optimizer import OptimizerConfig, make_optimizer

SETTINGS = {"lr": 3e-3, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1}


def trained(updates=3, **settings):
    """Parameters in PyTorch's order, and their AdamW, after a few updates with random gradients;
    the position table has none."""
    parameters = tensors(random_state_dict(TINY, seed=0, head=True))
    optimizer = torch.optim.AdamW(parameters.values(), **(SETTINGS | settings))
    for step in range(updates):
        give_gradients(parameters, seed=step)
        optimizer.step()
    return parameters, optimizer


def give_gradients(parameters, seed):
    rng = np.random.default_rng(seed)
    for name, tensor in parameters.items():
        gradient = torch.tensor(rng.normal(size=tensor.shape, scale=1e-3), dtype=torch.float32)
        tensor.grad = None if name == "pos_embed" else gradient


def as_arrays(parameters):
    return {name: tensor.numpy().copy() for name, tensor in parameters.items()}


def test_the_next_updates_are_the_same():
    parameters, torch_optimizer = trained()
    state = adamw_from_torch(torch_optimizer.state_dict(), list(parameters), TINY, head=True)
    assert state.count == 3
    expected = {"learning_rate": 3e-3, "b1": 0.8, "b2": 0.95, "eps": 1e-6, "weight_decay": 0.1}
    assert state.settings == expected
    params = from_torch(as_arrays(parameters), TINY)
    optimizer = make_optimizer(OptimizerConfig(clip_norm=1e6, **state.settings))
    moments = {"count": np.int32(state.count), "mu": state.mu, "nu": state.nu}
    opt_state = optax.tree.set(optimizer.init(params), **moments)
    fresh = optimizer.init(params)
    for step in (10, 11):
        give_gradients(parameters, seed=step)
        gradients = {
            name: np.zeros(tensor.shape, np.float32) if tensor.grad is None else tensor.grad.numpy()
            for name, tensor in parameters.items()
        }
        gradients = from_torch(gradients, TINY)
        other, _ = optimizer.update(gradients, fresh, params)
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        before = to_torch(params, TINY)
        params = optax.apply_updates(params, updates)
        torch_optimizer.step()
    after = as_arrays(parameters)
    assert worst_error(to_torch(params, TINY), after)[0] < 1e-6
    # A fresh optimiser would have gone elsewhere.
    fresh_after = to_torch(jax.tree.map(np.asarray, optax.apply_updates(params, other)), TINY)
    assert worst_error(fresh_after, before)[0] > 1e-3


def mangle(change):
    parameters, optimizer = trained()
    state = optimizer.state_dict()
    change(state)
    return state, list(parameters)


BAD = {
    "no state": (lambda s: s.pop("state"), "opt holds param_groups"),
    "sgd": (lambda s: s["param_groups"][0].pop("betas"), "not AdamW"),
    "groups": (
        lambda s: s["param_groups"].append(s["param_groups"][0]),
        "not AdamW with one group",
    ),
    "fewer": (lambda s: s["param_groups"][0]["params"].pop(), "has 45 parameters, the model 46"),
    "amsgrad": (lambda s: s["param_groups"][0].update(amsgrad=True), "amsgrad"),
    "none": (lambda s: s["state"].clear(), "no moments of"),
    "one": (lambda s: s["state"].pop(5), "no moments of"),
    "steps": (lambda s: s["state"][5].update(step=torch.tensor(9.0)), "3 to 9 updates"),
    "shape": (lambda s: s["state"][3].update(exp_avg=torch.zeros(2)), r"has shape \(2,\)"),
}


@pytest.mark.parametrize("change, message", BAD.values(), ids=BAD)
def test_another_state_is_refused(change, message):
    state, names = mangle(change)
    with pytest.raises(InputError, match=message):
        adamw_from_torch(state, names, TINY, head=True)
