"""The training state. Random keys and the data position follow from `step`: they are not in it."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from sra_jax.training.objective import Objective


class TrainState(NamedTuple):
    """The training state.

    Attributes:
      step: int32 [], updates made.
      params, ema: `{"trunk": ..., "method": {NAME: ...}}`, float32, of one structure.
      opt_state: of optax.
      method_state: {NAME: arrays that a method keeps and does not train}.
    """

    step: jax.Array
    params: Any
    ema: Any
    opt_state: Any
    method_state: Mapping[str, Any]


def init_state(
    objective: Objective, optimizer: optax.GradientTransformation, seed: int
) -> TrainState:
    """The state before the first step; the EMA, the teacher, starts as a copy of the student."""
    params = objective.init(seed)
    ema = jax.tree.map(jnp.copy, params)  # a copy, not an alias: the step donates both
    sizes = objective.trunk.sizes
    states = {method.name: method.init_state(sizes) for method in objective.methods}
    kept = {name: state for name, state in states.items() if jax.tree.leaves(state)}
    return TrainState(jnp.zeros((), jnp.int32), params, ema, optimizer.init(params), kept)


def to_trees(state: TrainState) -> dict[str, Any]:
    """The state as the named trees of a checkpoint.

    Trunk and methods lie apart: to sample, one reads the trunk and need not know the methods.
    """
    methods = {
        "params": state.params["method"],
        "ema": state.ema["method"],
        "state": state.method_state,
    }
    methods = {name: tree for name, tree in methods.items() if tree}
    trunk = {"params": state.params["trunk"], "ema": state.ema["trunk"]}
    trees = {"step": state.step, **trunk, "opt_state": state.opt_state}
    return trees | ({"methods": methods} if methods else {})


def from_trees(trees: Mapping[str, Any]) -> TrainState:
    """The state of a checkpoint: undoes `to_trees`."""
    methods = trees.get("methods", {})
    networks = {
        name: {"trunk": trees[name], "method": methods.get(name, {})} for name in ("params", "ema")
    }
    own = methods.get("state", {})
    return TrainState(trees["step"], **networks, opt_state=trees["opt_state"], method_state=own)


def nonfinite_leaves(state: TrainState) -> list[str]:
    """The paths of the arrays of `state` that hold a NaN or an infinity; waits for the devices.

    One jitted pass where the arrays live. A step's metrics tell most of what goes wrong, but not an
    update or an average that overflows while loss and gradient are finite.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    finite = jax.device_get(_finite([leaf for _, leaf in leaves]))
    named = (jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves)
    return [name for name, good in zip(named, finite, strict=True) if not good]


@jax.jit
def _finite(leaves: list[jax.Array]) -> jax.Array:
    """Whether each leaf is finite throughout: bool [leaves]."""
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves])
