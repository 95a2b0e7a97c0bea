"""The mesh, and which axis of it each array is split over.

One mesh with three named axes. `data` and `fsdp` split the batch; `fsdp` also splits parameters,
optimiser state and EMA, and `tensor` splits attention heads and MLP width.
"""

import contextlib
import io
import logging
import math
import re
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding

from sra_jax.errors import InputError

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")
CONNECT_SECONDS = 120
HEARTBEAT_SECONDS = 30  # a process not heard of for so long is gone, and ends the others
SHUTDOWN_SECONDS = 24 * 3600  # those that are done wait for one that still writes

_log = logging.getLogger(__name__)

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


def check_batch(batch_size: int, parts: int, mesh: Mesh) -> None:
    """Raises InputError unless every device's share of the batch divides into `parts`: microbatches
    times the examples of which SRA aligns one."""
    shards = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    if batch_size % (shards * parts):
        raise InputError(
            f"batch size {batch_size} does not divide over {shards} devices x {parts} parts "
            "(train.microbatches / sra.teacher_fraction); choose a multiple of "
            f"{shards * parts}"
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


def local_copies(tree: Any, mesh: Mesh) -> Any:
    """A tree of global arrays as arrays of this process alone, whole on each of its devices.

    Every process of the mesh must call it; a copy that is there already is not made again.
    """
    here = Mesh(np.array(mesh.local_devices), ("data",))

    def keep_local(leaf: jax.Array) -> jax.Array:
        parts = [shard.data for shard in leaf.addressable_shards]
        return jax.make_array_from_single_device_arrays(leaf.shape, replicated(here), parts)

    return jax.tree.map(keep_local, jax.device_put(tree, replicated(mesh)))


def from_each_process(arrays: Mapping[str, np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
    """Yields, process after process, the named arrays that each has given, bit for bit.

    Every process must call it, and go through all. Names and shapes may differ between processes.
    One process's arrays are in flight at a time.
    """
    if jax.process_count() == 1:
        yield dict(arrays)
        return
    file = io.BytesIO()
    np.savez(file, **arrays)
    mine = np.frombuffer(file.getvalue(), np.uint8)
    sizes = multihost_utils.process_allgather(np.uint32(len(mine)))
    for process, size in enumerate(sizes.ravel()):
        is_source = process == jax.process_index()
        sent = mine if is_source else np.zeros(size, np.uint8)
        received = multihost_utils.broadcast_one_to_all(sent, is_source=is_source)
        with np.load(io.BytesIO(np.asarray(received).tobytes()), allow_pickle=False) as loaded:
            yield dict(loaded)


def start_processes(
    coordinator: str | None, num_processes: int | None, process_id: int | None
) -> None:
    """Joins the processes of one run; call it before anything touches a device.

    JAX finds the others by itself on TPU pods, GKE and SLURM; elsewhere the three arguments name
    them. A lone process needs neither.

    Raises:
      InputError: only some of the arguments are given, or the coordinator does not answer.
    """
    given = (coordinator, num_processes, process_id)
    if any(value is not None for value in given) and None in given:
        raise InputError("give all of --coordinator=HOST:PORT, --num_processes and --process_id")
    if coordinator is not None:
        host, port = _host_and_port(coordinator)
        if not 0 <= process_id < num_processes:
            raise InputError(f"--process_id is {process_id}, expected 0 to {num_processes - 1}")
        if process_id > 0:
            _await_coordinator(host, port, process_id)
    try:
        jax.distributed.initialize(
            *given,
            initialization_timeout=CONNECT_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=SHUTDOWN_SECONDS,
        )
    except ValueError as error:
        if coordinator is not None:
            raise InputError(f"cannot start the processes: {error}") from None
        _log.debug("one process: %s", error)  # JAX found no cluster


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise InputError(f"--coordinator is {address!r}, expected HOST:PORT of process 0")
    return host, int(port)


def _await_coordinator(host: str, port: int, process_id: int) -> None:
    """Returns once somebody listens there: JAX would abort without a word of its own."""
    deadline = time.monotonic() + CONNECT_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=5):
            return
        time.sleep(0.5)
    raise InputError(
        f"process {process_id} got no answer from the coordinator {host}:{port} within "
        f"{CONNECT_SECONDS} s; start process 0 there, and check host and port"
    )


def _path_name(path: tuple) -> str:
    """("blocks", "mlp", ...) as "blocks/mlp/...": dict keys, fields and indices alike."""
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


def _spec(name: str) -> PartitionSpec:
    for pattern, spec in RULES:
        if re.search(rf"(^|/)({pattern})$", name):
            return spec
    raise InputError(f"no sharding rule names {name}; add one to RULES in sra_jax/parallel.py")
