"""Runs of version 0.1, whose configs and checkpoints knew one method: SRA.

There, the config had a section `sra`, and SRA's head lay among the trunk's parameters as `head`.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

SECTION = "sra"
NETWORKS = {"trunk", "method"}  # the keys of the parameters, and of what is shaped like them


def is_old(config: Mapping[str, Any]) -> bool:
    """Whether a config is of version 0.1."""
    return SECTION in config


def upgrade_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of version 0.1 as one of today."""
    config = dict(config)
    sra = dict(config.pop(SECTION))
    return config | {"method": {"sra": sra} if sra["weight"] > 0 else {}}


def with_head(trunk: Any, config: Mapping[str, Any]) -> Any:
    """Shapes of a trunk's parameters as version 0.1 saved them, with the head if there was one."""
    sra, width = config[SECTION], config["model"]["width"]
    if not (sra["weight"] > 0 and sra["head"]):
        return trunk
    sizes = {"fc1": (width, 2 * width), "fc2": (2 * width, width)}
    head = {
        name: {
            "kernel": jax.ShapeDtypeStruct(shape, jnp.float32),
            "bias": jax.ShapeDtypeStruct(shape[1:], jnp.float32),
        }
        for name, shape in sizes.items()
    }
    return {**trunk, "head": head}


def downgrade_trees(trees: Mapping[str, Any]) -> dict[str, Any]:
    """The trees of a checkpoint (see `training.state.to_trees`) as version 0.1 saved them."""
    trees = dict(trees)
    methods = trees.pop("methods", {})
    for name in ("params", "ema"):
        own = methods.get(name, {})
        trees[name] = _join({"trunk": trees[name], "method": own})
    return trees | {"opt_state": jax.tree.map(_join, trees["opt_state"], is_leaf=_is_networks)}


def upgrade_trees(trees: Mapping[str, Any]) -> dict[str, Any]:
    """The trees of a checkpoint of version 0.1 as those of today: undoes `downgrade_trees`."""
    trees, methods = dict(trees), {}
    for name in ("params", "ema"):
        parted = _part(trees[name])
        trees[name] = parted["trunk"]
        if parted["method"]:
            methods[name] = parted["method"]
    if "opt_state" in trees:
        trees["opt_state"] = jax.tree.map(_part, trees["opt_state"], is_leaf=_is_params)
    return trees | ({"methods": methods} if methods else {})


def _is_networks(tree: Any) -> bool:
    return isinstance(tree, dict) and set(tree) == NETWORKS


def _is_params(tree: Any) -> bool:
    return isinstance(tree, dict) and "blocks" in tree


def _join(tree: Any) -> Any:
    """{"trunk": T, "method": {"sra": H}} -> T with H as its head; other leaves stay."""
    if not _is_networks(tree):
        return tree
    head = tree["method"].get("sra")
    return {**tree["trunk"], **({"head": head} if head else {})}


def _part(tree: Any) -> Any:
    """Undoes `_join`."""
    if not _is_params(tree):
        return tree
    trunk = {name: leaves for name, leaves in tree.items() if name != "head"}
    return {"trunk": trunk, "method": {"sra": tree["head"]} if "head" in tree else {}}
