"""PyTorch's names and layouts of the parameters (those of the SiT, DiT and SRA releases) and ours.

One table says which tensor is which; both directions read it. Linear weights are [out, in] there
and [in, out] here; the blocks' parameters are separate there and stacked on a depth axis here.
"""

from collections.abc import Callable, Collection, Container, Iterator, Mapping
from functools import cache
from typing import Any, NamedTuple

import jax
import numpy as np

from sra_jax.core.errors import InputError
from sra_jax.core.state_dict import find_mismatch
from sra_jax.methods import SRA
from sra_jax.models import DiT, DiTConfig


class Layout(NamedTuple):
    """How one array is laid out there and here; both functions take (array, config)."""

    to_ours: Callable[[np.ndarray, DiTConfig], np.ndarray]
    to_torch: Callable[[np.ndarray, DiTConfig], np.ndarray]


def _head_axes(config):
    return config.num_heads, config.width // config.num_heads


SAME = Layout(lambda a, c: a, lambda a, c: a)
LINEAR = Layout(lambda a, c: a.T, lambda a, c: a.T)
POSITIONS = Layout(lambda a, c: a[0], lambda a, c: a[None])
PATCHES = (
    Layout(  # a convolution [D, C, p, p] there, a product with flat patches [p * p * C, D] here
        lambda a, c: a.transpose(2, 3, 1, 0).reshape(-1, c.width),
        lambda a, c: a.reshape(
            c.layout.patch, c.layout.patch, c.layout.channels, c.width
        ).transpose(3, 2, 0, 1),
    )
)
QKV_WEIGHT = Layout(
    lambda a, c: a.T.reshape(c.width, 3, *_head_axes(c)), lambda a, c: a.reshape(c.width, -1).T
)
QKV_BIAS = Layout(lambda a, c: a.reshape(3, *_head_axes(c)), lambda a, c: a.reshape(-1))
PROJ_WEIGHT = Layout(
    lambda a, c: a.T.reshape(*_head_axes(c), c.width), lambda a, c: a.reshape(-1, c.width).T
)

TABLE = {
    "pos_embed": ("pos_embed", POSITIONS),
    "x_embedder.proj.weight": ("patch_embed/kernel", PATCHES),
    "x_embedder.proj.bias": ("patch_embed/bias", SAME),
    "t_embedder.mlp.0.weight": ("time_embed/fc1/kernel", LINEAR),
    "t_embedder.mlp.0.bias": ("time_embed/fc1/bias", SAME),
    "t_embedder.mlp.2.weight": ("time_embed/fc2/kernel", LINEAR),
    "t_embedder.mlp.2.bias": ("time_embed/fc2/bias", SAME),
    "y_embedder.embedding_table.weight": ("label_embed/embedding", SAME),
    "final_layer.adaLN_modulation.1.weight": ("final/modulation/kernel", LINEAR),
    "final_layer.adaLN_modulation.1.bias": ("final/modulation/bias", SAME),
    "final_layer.linear.weight": ("final/linear/kernel", LINEAR),
    "final_layer.linear.bias": ("final/linear/bias", SAME),
}
# Methods whose parameters lie in released files; their blocks do not matter here.
RELEASED = (SRA(student_block=1, teacher_block=1),)
BLOCK_TABLE = {  # below "blocks.0." there, below "blocks/" and stacked here
    "attn.qkv.weight": ("attention/qkv/kernel", QKV_WEIGHT),
    "attn.qkv.bias": ("attention/qkv/bias", QKV_BIAS),
    "attn.proj.weight": ("attention/proj/kernel", PROJ_WEIGHT),
    "attn.proj.bias": ("attention/proj/bias", SAME),
    "mlp.fc1.weight": ("mlp/fc1/kernel", LINEAR),
    "mlp.fc1.bias": ("mlp/fc1/bias", SAME),
    "mlp.fc2.weight": ("mlp/fc2/kernel", LINEAR),
    "mlp.fc2.bias": ("mlp/fc2/bias", SAME),
    "adaLN_modulation.1.weight": ("modulation/kernel", LINEAR),
    "adaLN_modulation.1.bias": ("modulation/bias", SAME),
}


def from_torch(state_dict: Mapping[str, np.ndarray], config: DiTConfig) -> dict[str, Any]:
    """Our parameters, `{"trunk": ..., "method": {NAME: ...}}`, as float32 numpy arrays.

    Args:
      state_dict: arrays by PyTorch's name, or tensors in a file, which are read one at a time. A
        method's parameters, such as SRA's head (`ap_head.*`), are taken if they are there.
      config: shape of the trunk.

    Raises:
      InputError: a tensor is missing, left over, or of another shape than `config` gives.
    """
    methods = released_methods(state_dict)
    if mismatch := find_mismatch(state_dict, torch_shapes(config, methods)):
        raise InputError(f"the tensors do not fit this model: {mismatch}")

    def take(key: str, layout: Layout) -> np.ndarray:
        return layout.to_ours(np.asarray(state_dict[key], np.float32), config)

    params: dict[str, Any] = {"trunk": {}, "method": {}}
    for key, (path, layout) in _table(methods).items():
        _set(params, path, np.ascontiguousarray(take(key, layout)))
    for key, (path, layout) in BLOCK_TABLE.items():
        layers = (take(f"blocks.{i}.{key}", layout) for i in range(config.depth))
        _set(params["trunk"], f"blocks/{path}", _stack(layers, config.depth))
    return params


def released_methods(names: Container[str]) -> tuple[str, ...]:
    """The methods whose tensors are among `names`."""
    return tuple(m.name for m in RELEASED if any(f"{key}.weight" in names for key in m.torch_names))


def _table(methods: Collection[str]) -> dict[str, tuple[str, Layout]]:
    """Path in our parameters and layout of every tensor outside the blocks, by its name there."""
    table = {key: (f"trunk/{path}", layout) for key, (path, layout) in TABLE.items()}
    for method in RELEASED:
        for key, path in method.torch_names.items() if method.name in methods else ():
            below = f"method/{method.name}/{path}"
            table[f"{key}.weight"] = (f"{below}/kernel", LINEAR)
            table[f"{key}.bias"] = (f"{below}/bias", SAME)
    return table


def to_torch(params: Mapping[str, Any], config: DiTConfig) -> dict[str, np.ndarray]:
    """The PyTorch state dict, as numpy arrays, of our parameters (or of anything shaped like them,
    such as their gradients): the inverse of `from_torch`."""
    views = _torch_views(jax.tree.map(np.asarray, params), config)
    return {key: np.ascontiguousarray(view) for key, view in views.items()}


def _stack(layers: Iterator[np.ndarray], count: int) -> np.ndarray:
    """`np.stack`, holding one layer beside the result and not all of them."""
    first = next(layers)
    stacked = np.empty((count, *first.shape), first.dtype)
    stacked[0] = first
    for i, layer in enumerate(layers, start=1):
        stacked[i] = layer
    return stacked


def _torch_views(params: Mapping[str, Any], config: DiTConfig) -> dict[str, Any]:
    views = {
        key: layout.to_torch(_get(params, path), config)
        for key, (path, layout) in _table(params["method"]).items()
    }
    for key, (path, layout) in BLOCK_TABLE.items():
        stacked = _get(params["trunk"]["blocks"], path)
        for i in range(config.depth):
            views[f"blocks.{i}.{key}"] = layout.to_torch(stacked[i], config)
    return views


def fresh_params(config: DiTConfig, methods: Collection[str], key: jax.Array) -> dict[str, Any]:
    """First parameters of a trunk and of `methods`."""
    trunk = DiT(config)
    own = {m.name: m.init(key, trunk.sizes) for m in RELEASED if m.name in methods}
    return {"trunk": trunk.init(key), "method": own}


def torch_shapes(config: DiTConfig, methods: Collection[str] = ()) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor there, of a trunk and of the parameters of `methods`, by name."""
    return dict(_torch_shapes(config, tuple(methods)))


@cache
def _torch_shapes(config: DiTConfig, methods: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    def views(key):
        return _torch_views(fresh_params(config, methods, key), config)

    return {name: array.shape for name, array in jax.eval_shape(views, jax.random.key(0)).items()}


def _get(tree: Mapping[str, Any], path: str) -> Any:
    for name in path.split("/"):
        tree = tree[name]
    return tree


def _set(tree: dict[str, Any], path: str, value: Any) -> None:
    *parents, leaf = path.split("/")
    for name in parents:
        tree = tree.setdefault(name, {})
    tree[leaf] = value
