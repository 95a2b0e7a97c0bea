"""The mesh of devices with the axes `data`, `fsdp` and `tensor`, and how they share a batch.

`data` and `fsdp` split the batch; `fsdp` also splits parameters, optimiser state and EMA, and
`tensor` splits attention heads and MLP width.
"""

import math
from dataclasses import dataclass

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from sra_jax.core.errors import InputError

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")


@dataclass(frozen=True)
class MeshConfig:
    """The number of devices along each axis; -1, on at most one axis, takes all that are left.

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
    """Returns the mesh over `devices` (default: all of them).

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
    """The sharding of arrays whose first axis is the global batch."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of arrays that every device holds a copy of."""
    return NamedSharding(mesh, PartitionSpec())


def check_batch(batch_size: int, parts: int, mesh: Mesh) -> None:
    """Raises InputError unless every device's share of the batch divides into `parts`: microbatches
    times the examples that methods keep together."""
    shards = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    if batch_size % (shards * parts):
        raise InputError(
            f"batch size {batch_size} does not divide over {shards} devices x {parts} parts "
            "(train.microbatches x examples that methods keep together); choose a multiple of "
            f"{shards * parts}"
        )
