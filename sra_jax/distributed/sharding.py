"""Sharding rules: which device holds what part of every array; placing arrays accordingly."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from sra_jax.core.errors import InputError

Rules = Sequence[tuple[str, PartitionSpec]]
"""Patterns that an array's path ends with, and the spec of its axes. The first match decides."""

SPLIT_BYTES = 2**20  # smaller arrays are not worth a gather


def tree_shardings(tree: Any, mesh: Mesh, rules: Rules) -> Any:
    """The sharding of every array in `tree` (a state, parameters, or their shapes).

    Optimiser moments and EMA follow their parameter, because their paths end alike. An array of at
    least 1 MiB that no rule names is split over `fsdp` along its largest axis that divides; a
    smaller one is copied to every device.

    Raises:
      InputError: an axis does not divide over the devices as its rule says.
    """

    def sharding(path, leaf):
        name = _path_name(path)
        spec = _spec(name, leaf, mesh, rules)
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


def _spec(name: str, leaf: Any, mesh: Mesh, rules: Rules) -> PartitionSpec:
    for pattern, spec in rules:
        if re.search(rf"(^|/)({pattern})$", name):
            return spec
    return _fallback(leaf, mesh.shape["fsdp"])


def _fallback(leaf: Any, parts: int) -> PartitionSpec:
    """The spec of an array that no rule names."""
    large = math.prod(leaf.shape) * leaf.dtype.itemsize >= SPLIT_BYTES
    dividing = [i for i, size in enumerate(leaf.shape) if size % parts == 0]
    if not (large and dividing):
        return PartitionSpec()
    widest = max(dividing, key=lambda i: leaf.shape[i])
    return PartitionSpec(*("fsdp" if i == widest else None for i in range(widest + 1)))
