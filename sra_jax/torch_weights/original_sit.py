"""The original SiT release in our convention, by its weights alone.

There, data are at t = 1 and noise at t = 0, the velocity points from noise to data, and half of the
output channels, a variance, are computed and thrown away. With s = 1 - t, a sinusoidal embedding
of s is a reflection of that of t, frequency by frequency,

    cos(f - f t) = cos f cos(f t) + sin f sin(f t)
    sin(f - f t) = sin f cos(f t) - cos f sin(f t)

which the first layer of the time MLP takes in; the last layer takes in the sign of the velocity.
"""

from collections.abc import Mapping
from functools import partial

import numpy as np

from sra_jax.models import DiTConfig
from sra_jax.models.layers import FREQUENCIES, MAX_PERIOD

TIME_WEIGHT = "t_embedder.mlp.0.weight"
OUTPUT_WEIGHT = "final_layer.linear.weight"
OUTPUT_BIAS = "final_layer.linear.bias"


def reverse_time(state_dict: Mapping[str, np.ndarray], config: DiTConfig) -> dict[str, np.ndarray]:
    """The state dict of the same flow in our time: at t it predicts minus what the given one
    predicts at 1 - t.

    Folded in float64; the tensors that do not change are those given. `config` is our model's, and
    what `state_dict` predicts beyond its channels is dropped.
    """
    keep = partial(velocity_rows, patch=config.layout.patch, channels=config.layout.channels)
    return dict(state_dict) | {
        TIME_WEIGHT: _reflect(np.asarray(state_dict[TIME_WEIGHT], np.float64)),
        OUTPUT_WEIGHT: -keep(state_dict[OUTPUT_WEIGHT]),
        OUTPUT_BIAS: -keep(state_dict[OUTPUT_BIAS]),
    }


def velocity_rows(array: np.ndarray, patch: int, channels: int) -> np.ndarray:
    """The rows of the last layer's weight or bias that make the velocity: [p * p * C, ...]."""
    array = _by_channel(array, patch)[:, :channels]
    return array.reshape(-1, *array.shape[2:])


def variance_rows(array: np.ndarray, patch: int, channels: int) -> np.ndarray:
    """The other rows, [p * p, outputs - C, ...]."""
    return _by_channel(array, patch)[:, channels:]


def _by_channel(array: np.ndarray, patch: int) -> np.ndarray:
    array = np.asarray(array)
    return array.reshape(patch**2, -1, *array.shape[1:])


def _reflect(weight: np.ndarray) -> np.ndarray:
    """A weight [D, 256] on the embedding of 1 - t -> that on the embedding of t."""
    half = FREQUENCIES // 2
    frequencies = np.exp(-np.log(MAX_PERIOD) * np.arange(half) / half)
    cos, sin = np.cos(frequencies), np.sin(frequencies)
    on_cos, on_sin = np.split(weight, 2, axis=1)
    return np.concatenate([on_cos * cos + on_sin * sin, on_cos * sin - on_sin * cos], axis=1)
