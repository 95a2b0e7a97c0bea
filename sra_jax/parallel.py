"""The mesh, and which axis of it each array is split over.

One mesh with three named axes. `data` and `fsdp` split the batch; `fsdp` also splits parameters,
optimiser state and EMA, and `tensor` splits attention heads and MLP width.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from sra_jax.errors import InputError

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")

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
    (r"label_embed/embedding", PartitionSpec(None, "fsdp")),
    (r"final/modulation/kernel", PartitionSpec("fsdp", None)),
    # Too small to be worth a gather: copied to every device.
    (r"patch_embed/(kernel|bias)|pos_embed|final/linear/(kernel|bias)", PartitionSpec()),
    (r"(proj|fc2|fc1|modulation)/bias", PartitionSpec()),
    (r"step|count", PartitionSpec()),
)


@dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis; -1, on one axis at most, takes all that are left.

    Raises:
      InputError: a size that is neither positive nor -1, or more than one -1.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self):
        sizes = self.sizes
        if any(size < 1 and size != -1 for size in sizes) or sizes.count(-1) > 1:
            raise InputError(
                f"mesh is {self}, expected positive sizes and at most one -1 (all that are left)"
            )

    @property
    def sizes(self) -> tuple[int, int, int]:
        return self.data, self.fsdp, self.tensor

    def __str__(self) -> str:
        return " x ".join(f"{axis} {size}" for axis, size in zip(AXES, self.sizes, strict=True))


def make_mesh(config: MeshConfig, devices: list[jax.Device] | None = None) -> Mesh:
    """The mesh over `devices` (default: all of them).

    Raises:
      InputError: the sizes do not multiply to the number of devices.
    """
    count = len(devices or jax.devices())
    known = math.prod(size for size in config.sizes if size != -1)
    sizes = tuple(count // known if size == -1 else size for size in config.sizes)
    if math.prod(sizes) != count:
        raise InputError(
            f"mesh {config} does not cover the {count} devices; change mesh.data, mesh.fsdp or "
            "mesh.tensor (-1 is the rest)"
        )
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Arrays whose first axis is the global batch."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """Arrays of which every device holds a copy."""
    return NamedSharding(mesh, PartitionSpec())


def check_batch(batch_size: int, microbatches: int, mesh: Mesh) -> None:
    """Raises InputError unless every device gets the same number of examples of each microbatch."""
    shards = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    if batch_size % (shards * microbatches):
        raise InputError(
            f"batch size {batch_size} does not divide over {shards} devices x {microbatches} "
            f"microbatches; choose a multiple of {shards * microbatches}"
        )


def tree_shardings(tree: Any, mesh: Mesh) -> Any:
    """The sharding of every array in `tree` (a state, parameters, or their shapes), by `RULES`.

    Raises:
      InputError: no rule names an array, or an axis does not divide over the devices.
    """

    def sharding(path, leaf):
        name = "/".join(
            str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path
        )
        spec = _spec(name)
        for size, axis in zip(leaf.shape, spec, strict=False):
            if axis is not None and size % mesh.shape[axis]:
                raise InputError(
                    f"{name} {leaf.shape} has an axis of {size} that does not divide over "
                    f"mesh.{axis}={mesh.shape[axis]}; choose a divisor of {size}"
                )
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(sharding, tree)


def place_batch(batch: Mapping[str, np.ndarray], sharding: NamedSharding) -> dict[str, jax.Array]:
    """Puts this process's rows of a global batch on its devices, as part of the global arrays."""
    return {
        name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()
    }


def _spec(name: str) -> PartitionSpec:
    for pattern, spec in RULES:
        if re.search(rf"(^|/)({pattern})$", name):
            return spec
    raise InputError(f"no sharding rule names {name}; add one to RULES in sra_jax/parallel.py")
