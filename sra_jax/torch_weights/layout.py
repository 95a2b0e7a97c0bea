"""PyTorch's names and layouts of the parameters (those of the SiT, DiT and SRA releases) and ours.

One table says which tensor is which; both directions read it. Linear weights are [out, in] there
and [in, out] here; the blocks' parameters are separate there and stacked on a depth axis here.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any, NamedTuple

import jax
import numpy as np

from sra_jax.core.errors import InputError
from sra_jax.core.state_dict import find_mismatch
from sra_jax.models import DiffusionTransformer, TransformerConfig, init_params


class Layout(NamedTuple):
    """How one array is laid out there and here; both functions take (array, config)."""

    to_ours: Callable[[np.ndarray, TransformerConfig], np.ndarray]
    to_torch: Callable[[np.ndarray, TransformerConfig], np.ndarray]


def _head_axes(config):
    return config.num_heads, config.width // config.num_heads


SAME = Layout(lambda a, c: a, lambda a, c: a)
LINEAR = Layout(lambda a, c: a.T, lambda a, c: a.T)
POSITIONS = Layout(lambda a, c: a[0], lambda a, c: a[None])
PATCHES = (
    Layout(  # a convolution [D, C, p, p] there, a product with flat patches [p * p * C, D] here
        lambda a, c: a.transpose(2, 3, 1, 0).reshape(-1, c.width),
        lambda a, c: a.reshape(c.patch_size, c.patch_size, c.in_channels, c.width).transpose(
            3, 2, 0, 1
        ),
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
HEAD_TABLE = {
    "ap_head.linear1.weight": ("head/fc1/kernel", LINEAR),
    "ap_head.linear1.bias": ("head/fc1/bias", SAME),
    "ap_head.linear2.weight": ("head/fc2/kernel", LINEAR),
    "ap_head.linear2.bias": ("head/fc2/bias", SAME),
}
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


def from_torch(state_dict: Mapping[str, np.ndarray], config: TransformerConfig) -> dict[str, Any]:
    """Our parameters as float32 numpy arrays.

    Args:
      state_dict: arrays by PyTorch's name, or tensors in a file, which are read one at a time. The
        projection head (`ap_head.*`) is taken if it is there.
      config: shape of the model.

    Raises:
      InputError: a tensor is missing, left over, or of another shape than `config` gives.
    """
    head = any(key in state_dict for key in HEAD_TABLE)
    if mismatch := find_mismatch(state_dict, torch_shapes(config, head)):
        raise InputError(f"the tensors do not fit this model: {mismatch}")

    def take(key: str, layout: Layout) -> np.ndarray:
        return layout.to_ours(np.asarray(state_dict[key], np.float32), config)

    params: dict[str, Any] = {}
    for key, (path, layout) in (TABLE | (HEAD_TABLE if head else {})).items():
        _set(params, path, np.ascontiguousarray(take(key, layout)))
    for key, (path, layout) in BLOCK_TABLE.items():
        layers = (take(f"blocks.{i}.{key}", layout) for i in range(config.depth))
        _set(params, f"blocks/{path}", _stack(layers, config.depth))
    return params


def to_torch(params: Mapping[str, Any], config: TransformerConfig) -> dict[str, np.ndarray]:
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


def _torch_views(params: Mapping[str, Any], config: TransformerConfig) -> dict[str, Any]:
    table = TABLE | (HEAD_TABLE if "head" in params else {})
    views = {
        key: layout.to_torch(_get(params, path), config) for key, (path, layout) in table.items()
    }
    for key, (path, layout) in BLOCK_TABLE.items():
        stacked = _get(params["blocks"], path)
        for i in range(config.depth):
            views[f"blocks.{i}.{key}"] = layout.to_torch(stacked[i], config)
    return views


def torch_shapes(config: TransformerConfig, head: bool) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of a model there, by name."""
    return dict(_torch_shapes(config, head))


@cache
def _torch_shapes(config: TransformerConfig, head: bool) -> dict[str, tuple[int, ...]]:
    def views(key):
        return _torch_views(init_params(DiffusionTransformer(config), key, head), config)

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
