"""Runs of version 0.1, whose configs and checkpoints knew one method: SRA.

There, the config had a section `sra`, and SRA's head lay among the trunk's parameters as `head`.
"""

from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from sra_jax.checkpoints.store import CheckpointStore
from sra_jax.evaluation.names import current_name
from sra_jax.training.state import method_tree

SECTION = "sra"
NETWORKS = {"trunk", "method"}  # the keys of the parameters, and of what is shaped like them


def is_old(config: Mapping[str, Any]) -> bool:
    """Whether a config is of version 0.1."""
    return SECTION in config


def upgrade_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of version 0.1 as one of today."""
    config = dict(config)
    sra = dict(config.pop(SECTION))
    config["method"] = {"sra": sra} if sra["weight"] > 0 else {}
    evaluation = dict(config.get("evaluation", {}))
    if "features" in evaluation:
        evaluation["features"] = current_name(evaluation["features"])
    return config | ({"evaluation": evaluation} if evaluation else {})


def restore(
    store: CheckpointStore,
    abstract: Mapping[str, Any],
    step: int | None = None,
    optional: Collection[str] = (),
) -> tuple[int, dict[str, Any]]:
    """Restores like `CheckpointStore.restore`, also from checkpoints of version 0.1.

    Args:
      store: the run's checkpoints.
      abstract: shapes of some of the trees of `training.state.to_trees`.
      step: of the checkpoint; the newest undamaged one if not given.
      optional: names of trees that the checkpoint may lack.
    """

    def config_of(metadata: Mapping[str, Any]) -> Mapping[str, Any]:
        return metadata.get("config", {})

    def as_saved(metadata: Mapping[str, Any]) -> Mapping[str, Any]:
        config = config_of(metadata)
        return _downgrade(abstract, config) if is_old(config) else abstract

    step, trees = store.restore(as_saved, step, optional)
    if not is_old(config_of(store.metadata(step))):
        return step, trees
    upgraded = _upgrade(trees)
    return step, {name: tree for name, tree in upgraded.items() if name in abstract}


def _downgrade(trees: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Shapes of today's trees as version 0.1 saved them."""
    trees, head = dict(trees), _head_shapes(config)
    for kind in ("params", "ema"):
        own = trees.pop(method_tree(kind, SECTION), None)
        if head and kind in trees:
            trees[kind] = {**trees[kind], "head": own or head}
        elif head and own:  # it lies among the trunk's parameters
            raise ValueError(f"restore the {kind} of the trunk with those of the head")
    if "opt_state" in trees:
        trees["opt_state"] = jax.tree.map(_join, trees["opt_state"], is_leaf=_is_networks)
    return trees


def _head_shapes(config: Mapping[str, Any]) -> dict[str, Any]:
    """The shapes of SRA's head in a run of version 0.1; empty if it had none."""
    sra, width = config[SECTION], config["model"]["width"]
    if not (sra["weight"] > 0 and sra["head"]):
        return {}
    sizes = {"fc1": (width, 2 * width), "fc2": (2 * width, width)}
    return {
        name: {
            "kernel": jax.ShapeDtypeStruct(shape, jnp.float32),
            "bias": jax.ShapeDtypeStruct(shape[1:], jnp.float32),
        }
        for name, shape in sizes.items()
    }


def _upgrade(trees: Mapping[str, Any]) -> dict[str, Any]:
    """The trees of version 0.1 as today's: undoes `_downgrade`."""
    trees = dict(trees)
    for kind in {"params", "ema"} & trees.keys():
        parted = _part(trees[kind])
        trees[kind] = parted["trunk"]
        trees |= {method_tree(kind, name): own for name, own in parted["method"].items()}
    if "opt_state" in trees:
        trees["opt_state"] = jax.tree.map(_part, trees["opt_state"], is_leaf=_is_params)
    return trees


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
