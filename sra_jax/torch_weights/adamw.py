"""The state of PyTorch's AdamW as that of ours, so that a run goes on with its moments."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from sra_jax.core.errors import InputError
from sra_jax.models import TransformerConfig
from sra_jax.torch_weights.layout import from_torch, torch_shapes

FROZEN = "pos_embed"  # the one parameter without a gradient, and so without moments


class AdamWState(NamedTuple):
    """Updates made, first and second moments (trees like the parameters), and the settings that
    `OptimizerConfig` has fields for."""

    count: int
    mu: dict[str, Any]
    nu: dict[str, Any]
    settings: dict[str, float]


def adamw_from_torch(
    optimizer: Mapping[str, Any], names: Sequence[str], config: TransformerConfig, head: bool
) -> AdamWState:
    """Reads an optimiser's state dict. `names` are the model's parameters in its order, which is
    how PyTorch numbers them.

    Raises:
      InputError: the state is not AdamW's, or not of this model.
    """
    group = _only_group(optimizer, len(names))
    states = dict(zip(names, map(optimizer["state"].get, group["params"]), strict=True))
    shapes = torch_shapes(config, head)
    if missing := [name for name in shapes if name != FROZEN and not _is_adam(states.get(name))]:
        raise InputError(f"the optimiser has no moments of {missing[0]}; take a fresh one")
    counts = {int(states[name]["step"]) for name in shapes if name != FROZEN}
    if len(counts) != 1:
        raise InputError(
            f"the optimiser's parameters have seen {min(counts)} to {max(counts)} updates, not all "
            "as many; take a fresh one"
        )
    mu, nu = (
        from_torch(
            {
                name: np.zeros(shape, np.float32)
                if name == FROZEN
                else states[name][moment].detach().float().numpy()
                for name, shape in shapes.items()
            },
            config,
        )
        for moment in ("exp_avg", "exp_avg_sq")
    )
    return AdamWState(counts.pop(), mu, nu, _settings(group))


def _only_group(optimizer: Mapping[str, Any], count: int) -> Mapping[str, Any]:
    groups = optimizer.get("param_groups")
    if not isinstance(groups, list) or not isinstance(optimizer.get("state"), Mapping):
        raise InputError(
            f"opt holds {', '.join(map(str, optimizer))}, expected state, param_groups"
        )
    if len(groups) != 1 or not {"params", "lr", "betas", "eps", "weight_decay"} <= set(groups[0]):
        raise InputError(
            "the optimiser is not AdamW with one group of parameters; take a fresh one"
        )
    if len(groups[0]["params"]) != count:
        raise InputError(
            f"the optimiser has {len(groups[0]['params'])} parameters, the model {count}; take a "
            "fresh one"
        )
    for name in ("amsgrad", "maximize"):
        if groups[0].get(name):
            raise InputError(
                f"the optimiser ran with {name}, which ours does not; take a fresh one"
            )
    return groups[0]


def _is_adam(state: Any) -> bool:
    names = ("step", "exp_avg", "exp_avg_sq")
    return isinstance(state, Mapping) and all(hasattr(state.get(name), "detach") for name in names)


def _settings(group: Mapping[str, Any]) -> dict[str, float]:
    b1, b2 = group["betas"]
    settings = {"learning_rate": group["lr"], "b1": b1, "b2": b2}
    settings |= {name: group[name] for name in ("eps", "weight_decay")}
    return {name: float(value) for name, value in settings.items()}
