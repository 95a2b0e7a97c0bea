"""Copies arrays between processes: to each local device, and from every process."""

import io
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from sra_jax.distributed.mesh import replicated


def local_copies(tree: Any, mesh: Mesh) -> Any:
    """Returns global arrays as arrays of this process alone, copied whole to each of its devices.

    Every process of the mesh must call it. An array that a device already holds is not copied.
    """
    here = Mesh(np.array(mesh.local_devices), ("data",))

    def keep_local(leaf: jax.Array) -> jax.Array:
        parts = [shard.data for shard in leaf.addressable_shards]
        return jax.make_array_from_single_device_arrays(leaf.shape, replicated(here), parts)

    return jax.tree.map(keep_local, jax.device_put(tree, replicated(mesh)))


def from_each_process(arrays: Mapping[str, np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
    """Yields the arrays of every process by name, in the order of the processes, bit for bit.

    Every process must call it and read it to the end. Names and shapes may differ between
    processes. The arrays of one process are sent at a time.
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
