"""From parameters and labels to images, in chunks; each is a function of (seed, index) alone."""

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sra_jax.codecs import Codec
from sra_jax.errors import InputError
from sra_jax.models import DiffusionTransformer
from sra_jax.processes import Process
from sra_jax.randomness import stream_key
from sra_jax.sampling.guidance import Guidance, make_predictors
from sra_jax.sampling.solvers import Step, solve

# From (params, seed [], index [B] of each image, labels [B]) to latents [B, H, W, C].
Sampler = Callable[[Any, jax.Array, jax.Array, jax.Array], jax.Array]

PROGRESS_SECONDS = 5.0

_log = logging.getLogger(__name__)


def make_sampler(
    model: DiffusionTransformer, process: Process, steps: list[Step], guidance: Guidance
) -> Sampler:
    """The jitted sampler that follows `steps`."""
    config = model.config
    shape = (config.input_size, config.input_size, config.in_channels)

    @jax.jit
    def sample(params, seed, indices, labels):
        key = stream_key(seed, "sample")
        keys = jax.vmap(lambda index: jax.random.fold_in(key, index))(indices)

        def normal(number):
            draw = lambda k: jax.random.normal(jax.random.fold_in(k, number), shape)  # noqa: E731
            return jax.vmap(draw)(keys)

        apply = partial(model.apply, {"params": params})
        predictors = make_predictors(apply, guidance, config.num_classes, labels)
        return solve(process, steps, predictors, guidance, lambda i: normal(i + 1), normal(0))

    return sample


def generate(
    sampler: Sampler, params: Any, codec: Codec, labels: np.ndarray, seed: int, chunk: int
) -> np.ndarray:
    """Images uint8 [N, H, W, C] of `labels` [N], `chunk` of them sampled at a time.

    Raises:
      InputError: there are no labels.
    """
    if not len(labels):
        raise InputError("asked for 0 images, expected at least 1")
    params = jax.device_put(params)
    images, began, told = [], time.perf_counter(), time.perf_counter()
    for first in range(0, len(labels), chunk):
        indices = np.arange(first, first + chunk)  # a short last chunk is filled up, then cut
        part = np.resize(labels[first : first + chunk], chunk)
        latents = sampler(params, jnp.uint32(seed), indices, part)
        images.append(codec.decode(np.asarray(latents)))
        done, now = min(first + chunk, len(labels)), time.perf_counter()
        if now - told > PROGRESS_SECONDS:
            rate = done / (now - began)
            left = (len(labels) - done) / rate
            _log.info("%s/%s images  %.1f images/s  %.0fs left", done, len(labels), rate, left)
            told = now
    return np.concatenate(images)[: len(labels)]


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
        labels: Sequence[int] = [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(
            f"labels is {text!r}, expected random, balanced or a list like 3,1,4"
        ) from None
    for label in labels:
        if not 0 <= label < num_classes:
            raise InputError(f"label {label} is out of range, expected 0 to {num_classes - 1}")
    return np.array(labels, np.int32)
