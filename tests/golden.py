"""Golden numbers, how near to them we must come, and helpers that several tests share.

`data/sit.npz` and `data/dit.npz` were computed by the paper authors' PyTorch code in float32 on
CPU, on random weights: arrays in PyTorch's layout.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sra_jax.conditioning import ClassLabels
from sra_jax.models import WHOLE, DiT, DiTConfig, LatentLayout, Pass
from sra_jax.torch_weights import from_torch

DATA = Path(__file__).parent / "data"

# Norm of the difference over norm, float32 on CPU.
FEATURES = 5e-6  # predictions and samples too
LOSSES = 1e-5
SIT_GRADIENTS = 1e-5
DIT_GRADIENTS = 5e-5
AFTER_THREE_STEPS = 3e-4
VB_AT_0 = 1e-3
BFLOAT16 = 2e-2  # the bfloat16 forward against the float32 one
ROUNDING = 1e-6  # one float32 computation against the same in another order


SIZE_NAMES = ("hidden_size", "width"), ("num_heads", "heads")


class Golden:
    """The arrays of one file by key, and the model they belong to.

    Args:
      kind: one of `check_golden.KINDS`.
      file: the file to read; by default the one in `data/`.
    """

    def __init__(self, kind: str, file: Path | None = None):
        with np.load(file or DATA / f"{kind}.npz", allow_pickle=False) as arrays:
            self._arrays = dict(arrays)
        self._unread = set(self._arrays)
        self.meta = json.loads(str(self["meta"]))
        meta = self.meta  # authors name the same size differently
        width, heads = (meta.get(a, meta.get(b)) for a, b in SIZE_NAMES)
        side = meta["input_size"]
        channels = meta["channels"] if "channels" in meta else self["fwd/x"].shape[1]
        self.config = DiTConfig(
            LatentLayout(side, side, channels, meta["patch_size"]),
            ClassLabels(meta["num_classes"]),
            outputs=2 if kind == "dit" else 1,
            width=width,
            depth=meta["depth"],
            num_heads=heads,
        )

    def __getitem__(self, key: str) -> np.ndarray:
        self._unread.discard(key)
        return self._arrays[key]

    def __contains__(self, key: str) -> bool:
        return key in self._arrays

    @property
    def unread(self) -> list[str]:
        """The keys that nobody has asked for yet, sorted."""
        return sorted(self._unread)

    def state_dict(self, prefix: str) -> dict[str, np.ndarray]:
        """The arrays below `prefix/`."""
        start = len(prefix) + 1
        return {k[start:]: self[k] for k in self._arrays if k.startswith(prefix + "/")}

    def params(self, prefix: str):
        """Our parameters, of trunk and method, from the state dict below `prefix/`."""
        return from_torch(self.state_dict(prefix), self.config)

    def images(self, key: str) -> np.ndarray:
        """An array of images, channels last: [..., C, H, W] -> [..., H, W, C]."""
        return np.moveaxis(self[key], -3, -1)

    def jax(self, key: str, dtype=None) -> jax.Array:
        return jnp.asarray(self[key], dtype)


class Jitted:
    """A trunk of labels whose `apply` is compiled. It takes parameters of trunk and methods, or of
    the trunk alone."""

    def __init__(self, config: DiTConfig):
        self.config, self.trunk = config, DiT(config)
        self._apply = jax.jit(self.trunk.apply, static_argnames="how")

    def __call__(self, params, x, t, labels, taps=(), stop_at=None):
        how = Pass(taps if isinstance(taps, str) else tuple(taps), stop_at)
        return self.apply(params.get("trunk", params), x, t, {"labels": labels}, how)

    def apply(self, params, x, t, condition, how=WHOLE):
        """Like `DiT.apply`, of the trunk's parameters."""
        return self._apply(params, x, t, condition, how=how)


def relative_error(actual, expected) -> float:
    """Norm of the difference over the norm of what was expected, in float64."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, f"{actual.shape} is not {expected.shape}"
    return np.linalg.norm(actual - expected) / np.linalg.norm(expected)


def worst_error(actual: dict, expected: dict) -> tuple[float, str]:
    """The largest relative error over arrays of the same names, and its name."""
    assert set(actual) == set(expected)
    return max((relative_error(actual[name], expected[name]), name) for name in expected)


class Comparison(NamedTuple):
    """One quantity: norm of the difference over norm, and how large it may be."""

    name: str
    error: float
    tolerance: float

    @property
    def ratio(self) -> float:
        """The error as a multiple of its tolerance; infinity if the error is not a number."""
        return math.inf if math.isnan(self.error) else self.error / self.tolerance

    @property
    def ok(self) -> bool:
        """Whether the error is a number within its tolerance."""
        return self.error <= self.tolerance


def compare(name: str, actual: Any, expected: Any, tolerance: float) -> Comparison:
    """Compares two arrays; the error of an array of another shape is infinite."""
    if np.shape(actual) != np.shape(expected):
        return Comparison(name, math.inf, tolerance)
    return Comparison(name, float(relative_error(actual, expected)), tolerance)


def compare_worst(
    prefix: str, actual: Mapping[str, Any], expected: Mapping[str, Any], tolerance: float
) -> Comparison:
    """Compares the tensors of two state dicts, and returns the worst; one that is in only one of
    them has an infinite error."""
    each = [
        compare(f"{prefix}/{key}", actual[key], expected[key], tolerance)
        if key in actual and key in expected
        else Comparison(f"{prefix}/{key}", math.inf, tolerance)
        for key in sorted(actual.keys() | expected.keys())
    ]
    return max(each, key=lambda comparison: comparison.ratio)


def random_state_dict(config: DiTConfig, seed: int, head: bool) -> dict[str, np.ndarray]:
    """A PyTorch state dict of the releases' names and shapes, all of it random and none of it zero:
    written from the releases, not from our table."""
    width, patch, hidden = config.width, config.layout.patch, config.mlp_ratio * config.width
    channels = config.layout.channels
    outputs = patch**2 * channels * config.outputs
    linear = {  # name: (out, in)
        "t_embedder.mlp.0": (width, 256),
        "t_embedder.mlp.2": (width, width),
        "final_layer.adaLN_modulation.1": (2 * width, width),
        "final_layer.linear": (outputs, width),
    }
    for i in range(config.depth):
        linear |= {
            f"blocks.{i}.attn.qkv": (3 * width, width),
            f"blocks.{i}.attn.proj": (width, width),
            f"blocks.{i}.mlp.fc1": (hidden, width),
            f"blocks.{i}.mlp.fc2": (width, hidden),
            f"blocks.{i}.adaLN_modulation.1": (6 * width, width),
        }
    if head:
        linear |= {"ap_head.linear1": (2 * width, width), "ap_head.linear2": (width, 2 * width)}
    rng = np.random.default_rng(seed)
    state_dict = {
        "pos_embed": rng.normal(size=(1, config.layout.tokens, width)),
        "x_embedder.proj.weight": rng.normal(size=(width, channels, patch, patch))
        / np.sqrt(channels * patch**2),
        "x_embedder.proj.bias": 0.1 * rng.normal(size=width),
        "y_embedder.embedding_table.weight": rng.normal(
            size=(config.conditioning.num_classes + 1, width)
        ),
    }
    for name, shape in linear.items():
        state_dict[f"{name}.weight"] = rng.normal(size=shape) / np.sqrt(shape[1])
        state_dict[f"{name}.bias"] = 0.1 * rng.normal(size=shape[0])
    return {name: array.astype(np.float32) for name, array in state_dict.items()}
