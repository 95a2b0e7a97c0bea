"""Sharding rules: which device holds what part of every array; placing arrays accordingly."""

import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from sra_jax.core.errors import InputError

# The first pattern that a parameter's path ends with decides, one entry an axis of the array; the
# blocks' arrays begin with the depth. Optimiser moments and EMA follow their parameter.
RULES: tuple[tuple[str, PartitionSpec], ...] = (
    (r"blocks/attention/qkv/kernel", PartitionSpec(None, "fsdp", None, "tensor", None)),
    (r"blocks/attention/qkv/bias", PartitionSpec(None, None, "tensor", None)),
    (r"blocks/attention/proj/kernel", PartitionSpec(None, "tensor", None, "fsdp")),
    (r"blocks/mlp/fc1/kernel", PartitionSpec(None, "fsdp", "tensor")),
    (r"blocks/mlp/fc1/bias", PartitionSpec(None, "tensor")),
    (r"blocks/mlp/fc2/kernel", PartitionSpec(None, "tensor", "fsdp")),
    (r"blocks/modulation/kernel", PartitionSpec(None, "fsdp", None)),
    (r"head/fc1/kernel", PartitionSpec("fsdp", "tensor")),
    (r"head/fc1/bias", PartitionSpec("tensor")),
    (r"head/fc2/kernel", PartitionSpec("tensor", "fsdp")),
    (r"time_embed/fc[12]/kernel", PartitionSpec("fsdp", None)),
    (r"final/modulation/kernel", PartitionSpec("fsdp", None)),
    # Too small to be worth a gather: copied to every device.
    (r"label_embed/embedding|pos_embed", PartitionSpec()),
    (r"patch_embed/(kernel|bias)|final/linear/(kernel|bias)", PartitionSpec()),
    (r"(proj|fc2|fc1|modulation)/bias", PartitionSpec()),
    (r"step|count", PartitionSpec()),
)


def tree_shardings(tree: Any, mesh: Mesh) -> Any:
    """The sharding of every array in `tree` (a state, parameters, or their shapes), by `RULES`.

    Raises:
      InputError: no rule names an array, or an axis does not divide over the devices.
    """

    def sharding(path, leaf):
        name = _path_name(path)
        spec = _spec(name)
        for size, axis in zip(leaf.shape, spec, strict=False):
            if axis is not None and size % mesh.shape[axis]:
                raise InputError(
                    f"{name} {leaf.shape} has an axis of {size} that does not divide over "
                    f"mesh.{axis}={mesh.shape[axis]}; choose a divisor of {size}"
                )
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(sharding, tree)


def abstract(tree: Any, shardings: Any) -> Any:
    """Shapes of `tree`, placed by `shardings` (a tree of the same structure, or one for all)."""
    if isinstance(shardings, Sharding):
        shardings = jax.tree.map(lambda _: shardings, tree)

    def place(leaf, sharding):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(place, tree, shardings)


def sharding_table(tree: Any) -> list[str]:
    """One line an array of an abstract tree: path, shape, spec, megabytes on each device."""
    rows = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        size = math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        spec = ", ".join(str(axis) for axis in leaf.sharding.spec) or "copied"
        rows.append((_path_name(path), str(leaf.shape), spec, f"{size / 1e6:,.2f} MB"))
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False))
        + f"  {row[3]:>12}"
        for row in rows
    ]


def local_rows(batch_size: int, sharding: NamedSharding) -> np.ndarray:
    """The rows of the global batch that this process's devices hold, increasing."""
    slices = sharding.addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[index] for index in slices]))


def place_batch(
    batch: Mapping[str, np.ndarray], rows: np.ndarray, batch_size: int, sharding: NamedSharding
) -> dict[str, jax.Array]:
    """Puts `rows` of a global batch on this process's devices, as its part of the global arrays."""

    def place(values: np.ndarray) -> jax.Array:
        def shard(index):
            first, last, _ = index[0].indices(batch_size)
            return values[np.searchsorted(rows, first) : np.searchsorted(rows, last)]

        return jax.make_array_from_callback((batch_size, *values.shape[1:]), sharding, shard)

    return {name: place(values) for name, values in batch.items()}


def _path_name(path: tuple) -> str:
    """("blocks", "mlp", ...) as "blocks/mlp/...": dict keys, fields and indices alike."""
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


def _spec(name: str) -> PartitionSpec:
    for pattern, spec in RULES:
        if re.search(rf"(^|/)({pattern})$", name):
            return spec
    raise InputError(
        f"no sharding rule names {name}; add one to RULES in sra_jax/distributed/parallel.py"
    )
