"""Golden numbers, how near to them we must come, and helpers that several tests share.

`data/sit.npz` and `data/dit.npz` were computed by the paper authors' PyTorch code in float32 on
CPU, on random weights: arrays in PyTorch's layout.
"""

import json
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sra_jax.models import DiffusionTransformer, TransformerConfig
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


class Golden:
    """The arrays of one file by key, and the model they belong to.

    Args:
      kind: "sit" or "dit".
      file: the file to read; by default the one in `data/`.
    """

    def __init__(self, kind: str, file: Path | None = None):
        with np.load(file or DATA / f"{kind}.npz", allow_pickle=False) as arrays:
            self._arrays = dict(arrays)
        self._unread = set(self._arrays)
        self.meta = json.loads(str(self["meta"]))
        self.config = TransformerConfig(
            kind=kind,
            input_size=self.meta["input_size"],
            patch_size=self.meta["patch_size"],
            in_channels=self["fwd/x"].shape[1],
            width=self.meta["hidden_size"],
            depth=self.meta["depth"],
            num_heads=self.meta["num_heads"],
            num_classes=self.meta["num_classes"],
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
        """Our parameters from the state dict below `prefix/`."""
        return from_torch(self.state_dict(prefix), self.config)

    def images(self, key: str) -> np.ndarray:
        """An array of images, channels last: [..., C, H, W] -> [..., H, W, C]."""
        return np.moveaxis(self[key], -3, -1)

    def jax(self, key: str, dtype=None) -> jax.Array:
        return jnp.asarray(self[key], dtype)


class Jitted:
    """A model's `apply`, compiled."""

    def __init__(self, config: TransformerConfig):
        self.config = config
        self.module = DiffusionTransformer(config)
        static = ("taps", "stop_at", "method")
        self._apply = jax.jit(self.module.apply, static_argnames=static)

    def __call__(self, params, x, t, labels, taps=(), stop_at=None):
        return self._apply({"params": params}, x, t, labels, taps=taps, stop_at=stop_at)

    def project(self, params, feature):
        return self._apply({"params": params}, feature, method="project")

    def bind(self, params):
        """The model with its parameters, as `sra_loss` and the solvers want it."""
        return partial(self, params)


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


def random_state_dict(config: TransformerConfig, seed: int, head: bool) -> dict[str, np.ndarray]:
    """A PyTorch state dict of the releases' names and shapes, all of it random and none of it zero:
    written from the releases, not from our table."""
    width, patch, hidden = config.width, config.patch_size, config.mlp_ratio * config.width
    outputs = patch**2 * config.in_channels * {"sit": 1, "dit": 2}[config.kind]
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
        "pos_embed": rng.normal(size=(1, config.num_tokens, width)),
        "x_embedder.proj.weight": rng.normal(size=(width, config.in_channels, patch, patch))
        / np.sqrt(config.in_channels * patch**2),
        "x_embedder.proj.bias": 0.1 * rng.normal(size=width),
        "y_embedder.embedding_table.weight": rng.normal(size=(config.num_classes + 1, width)),
    }
    for name, shape in linear.items():
        state_dict[f"{name}.weight"] = rng.normal(size=shape) / np.sqrt(shape[1])
        state_dict[f"{name}.bias"] = 0.1 * rng.normal(size=shape[0])
    return {name: array.astype(np.float32) for name, array in state_dict.items()}


def count_multiply_adds(function, *arguments) -> int:
    """Multiply-adds of the matrix products that `function` takes, counted in its jaxpr: nothing is
    computed or compiled, and arguments may be shapes. A scan's body counts once a turn."""
    return _count(jax.make_jaxpr(function)(*arguments).jaxpr)


def _count(jaxpr) -> int:
    return sum(_count_equation(equation) for equation in jaxpr.eqns)


def _count_equation(equation) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        left, right = (variable.aval.shape for variable in equation.invars)
        (contracted, _), (batch, _) = params["dimension_numbers"]
        assert left and right
        kept = [n for i, n in enumerate(left) if i in batch or i not in contracted]
        right_contracted, right_batch = (pair[1] for pair in params["dimension_numbers"])
        free = [n for i, n in enumerate(right) if i not in (*right_contracted, *right_batch)]
        return int(np.prod([*kept, *free, *(left[i] for i in contracted)], dtype=np.int64))
    assert name not in ("while", "cond", "conv_general_dilated"), f"cannot count a {name}"
    inside = sum(_count(inner) for inner in _inner_jaxprs(params))
    return inside * (params["length"] if name == "scan" else 1)


def _inner_jaxprs(params):
    for value in params.values():
        if hasattr(value, "jaxpr"):  # closed
            yield value.jaxpr
        elif hasattr(value, "eqns"):
            yield value
