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

    The trunk's parameters are "params" and "ema", those of a method "params_NAME" and "ema_NAME",
    its state is "state_NAME". So one reads the trunk without knowing the methods.
    """
    trees = {"step": state.step, "opt_state": state.opt_state}
    for kind, params in (("params", state.params), ("ema", state.ema)):
        trees |= {kind: params["trunk"]}
        trees |= {method_tree(kind, name): own for name, own in params["method"].items()}
    return trees | {method_tree("state", name): own for name, own in state.method_state.items()}


def from_trees(trees: Mapping[str, Any]) -> TrainState:
    """The state of a checkpoint's trees: undoes `to_trees`."""
    own = {"params": {}, "ema": {}, "state": {}}
    for tree_name, tree in trees.items():
        kind, _, name = tree_name.partition("_")
        if kind in own and name:
            own[kind][name] = tree
    params, ema = ({"trunk": trees[kind], "method": own[kind]} for kind in ("params", "ema"))
    return TrainState(trees["step"], params, ema, trees["opt_state"], own["state"])


def method_tree(kind: str, name: str) -> str:
    """The name of a method's tree in a checkpoint; `kind` is "params", "ema" or "state"."""
    return f"{kind}_{name}"


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
