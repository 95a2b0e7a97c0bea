"""From parameters and labels to latents, in chunks; each depends on (seed, index, label) alone."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sra_jax.conditioning import ClassLabels
from sra_jax.core.random import stream_key
from sra_jax.models import Trunk
from sra_jax.processes import Process
from sra_jax.sampling.guidance import Guidance, make_predictors
from sra_jax.sampling.solvers import Step, solve

# From (params, seed [], index [B] of each image, labels [B]) to latents [B, H, W, C].
Sampler = Callable[[Any, jax.Array, jax.Array, jax.Array], jax.Array]


def make_sampler(
    trunk: Trunk,
    process: Process,
    conditioning: ClassLabels,
    steps: list[Step],
    guidance: Guidance,
) -> Sampler:
    """A jitted sampler that makes the solver's `steps`, with `guidance`."""
    shape = trunk.sizes.layout.shape

    @jax.jit
    def sample(params, seed, indices, labels):
        key = stream_key(seed, "sample")
        keys = jax.vmap(partial(jax.random.fold_in, key))(indices)

        def normal(number):
            return jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(k, number), shape))(keys)

        network = partial(trunk.apply, params)
        predictors = make_predictors(network, guidance, conditioning, {"labels": labels})
        return solve(process, steps, predictors, guidance, lambda i: normal(i + 1), normal(0))

    return sample


def sample_chunks(
    sampler: Sampler,
    params: Any,
    labels: np.ndarray,
    seed: int,
    chunk: int,
    wanted: Sequence[int],
    devices: Sequence[jax.Device],
) -> Iterator[tuple[int, jax.Array]]:
    """Yields (number, latents [chunk, H, W, C]) of the chunks `wanted`.

    Chunk k holds images k * `chunk` to (k + 1) * `chunk` - 1 of `labels` [N]. The last chunk is
    filled up by repeating the labels. Every device computes one chunk at a time, so all shapes are
    the same on any number of devices, and so are the results, except perhaps for a last bit where
    XLA fuses differently.
    """
    mesh = Mesh(np.array(devices), ("data",))
    split, copied = (NamedSharding(mesh, spec) for spec in (PartitionSpec("data"), PartitionSpec()))
    params = jax.device_put(params, copied)
    seed = jax.device_put(jnp.uint32(seed), copied)
    labels = np.resize(labels, chunk * -(-len(labels) // chunk))
    for first in range(0, len(wanted), len(devices)):
        numbers = list(wanted[first : first + len(devices)])
        filled = np.resize(numbers, len(devices))  # idle devices repeat a chunk
        indices = (filled[:, None] * chunk + np.arange(chunk)).ravel()
        latents = sampler(
            params, seed, *jax.device_put((indices.astype(np.uint32), labels[indices]), split)
        )
        for position, number in enumerate(numbers):
            yield number, latents[position * chunk : (position + 1) * chunk]
