"""From parameters and labels to latents, in chunks; each depends on (seed, index, label) alone."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sra_jax.core.errors import InputError
from sra_jax.core.random import stream_key
from sra_jax.models import DiffusionTransformer
from sra_jax.processes import Process
from sra_jax.sampling.guidance import Guidance, make_predictors
from sra_jax.sampling.solvers import Step, solve

# From (params, seed [], index [B] of each image, labels [B]) to latents [B, H, W, C].
Sampler = Callable[[Any, jax.Array, jax.Array, jax.Array], jax.Array]


def make_sampler(
    model: DiffusionTransformer, process: Process, steps: list[Step], guidance: Guidance
) -> Sampler:
    """A jitted sampler that makes the solver's `steps`, with `guidance`."""
    config = model.config
    shape = (config.input_size, config.input_size, config.in_channels)

    @jax.jit
    def sample(params, seed, indices, labels):
        key = stream_key(seed, "sample")
        keys = jax.vmap(partial(jax.random.fold_in, key))(indices)

        def normal(number):
            return jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(k, number), shape))(keys)

        apply = partial(model.apply, {"params": params})
        predictors = make_predictors(apply, guidance, config.num_classes, labels)
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


def choose_labels(text: str, count: int, num_classes: int, seed: int) -> np.ndarray:
    """Labels int32 [count]: "random", "balanced" (0, 1, 2 and so on), or a list "3,1,4" repeated.

    Raises:
      InputError: something else, or a label out of range.
    """
    if text == "random":
        return np.random.default_rng(seed).integers(num_classes, size=count, dtype=np.int32)
    if text == "balanced":
        return np.arange(count, dtype=np.int32) % num_classes
    return np.resize(_parse_labels(text, num_classes), count)


def _parse_labels(text: str, num_classes: int) -> np.ndarray:
    try:
        labels = [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(
            f"labels is {text!r}, expected random, balanced or a list like 3,1,4"
        ) from None
    for label in labels:
        if not 0 <= label < num_classes:
            raise InputError(f"label {label} is out of range, expected 0 to {num_classes - 1}")
    return np.array(labels, np.int32)
