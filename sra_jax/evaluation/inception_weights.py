"""The weights of the FID-Inception: the widely used PyTorch port's file, and ours.

Nothing is downloaded. A .pth goes through `torch.load(weights_only=True)`, which runs no code from
the file; a .safetensors with the same names needs no torch.
"""

import os
from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError
from safetensors.numpy import load_file

from sra_jax.core.errors import InputError
from sra_jax.core.state_dict import find_mismatch
from sra_jax.evaluation.inception import IMAGE_SIZE, Inception

WEIGHTS_FILE = "pt_inception-2015-12-05-6726825d.pth"
HOW_TO_FETCH = (
    f"fetch https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{WEIGHTS_FILE}"
)
NORM_EPS = 1e-3
NORM_LEAVES = ("weight", "bias", "running_mean", "running_var")


def load_inception(path: str | os.PathLike) -> dict[str, Any]:
    """Parameters of `Inception`, float32 numpy arrays, from a .pth or .safetensors file.

    Raises:
        InputError: no such file, it is damaged or holds something else, or a .pth where torch is
            not installed.
    """
    path = Path(path)
    if not path.is_file():
        found = f"{path} is a directory" if path.is_dir() else f"no file {path}"
        raise InputError(f"{found}, expected Inception's weights: {HOW_TO_FETCH}")
    if path.suffix == ".safetensors":
        tensors = _read_safetensors(path)
    elif path.suffix in (".pth", ".pt"):
        tensors = _read_torch(path)
    else:
        raise InputError(f"Inception file {path} must end in .pth or .safetensors: {HOW_TO_FETCH}")
    return params_from_torch(tensors, str(path))


def params_from_torch(
    tensors: Mapping[str, np.ndarray], source: str = "the state dict"
) -> dict[str, Any]:
    """Parameters of `Inception` from the port's tensors, batch normalisation folded in.

    A convolution with weights w, then normalisation with mean m, variance v, scale g and offset b,
    is one with weights w g / sqrt(v + 0.001) and bias b - m g / sqrt(v + 0.001).

    Raises:
        InputError: tensors that are missing, left over or of other shapes; names `source`.
    """
    tensors = {k: v for k, v in tensors.items() if not k.endswith(".num_batches_tracked")}
    if mismatch := find_mismatch(tensors, _torch_shapes()):
        raise InputError(f"{source} is not the FID-Inception ({mismatch}): {HOW_TO_FETCH}")
    params = {("fc", "kernel"): tensors["fc.weight"].T, ("fc_bias",): tensors["fc.bias"]}
    for path in _our_shapes():
        if path[-2:] == ("conv", "kernel"):
            params[path], params[(*path[:-1], "bias")] = _folded(tensors, ".".join(path[:-2]))
    return unflatten_dict({k: np.ascontiguousarray(v, np.float32) for k, v in params.items()})


def _folded(tensors: Mapping[str, np.ndarray], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Kernel [h, w, in, out] and bias [out] of the convolution `name`."""
    scale, offset, mean, variance = (
        tensors[f"{name}.bn.{leaf}"].astype(np.float64) for leaf in NORM_LEAVES
    )
    scale = scale / np.sqrt(variance + NORM_EPS)
    return tensors[f"{name}.conv.weight"].transpose(2, 3, 1, 0) * scale, offset - mean * scale


def _torch_shapes() -> dict[str, tuple[int, ...]]:
    """Shape of each of the port's tensors by its name."""
    shapes = {}
    for path, shape in _our_shapes().items():
        name = ".".join(path[:-2])
        if path == ("fc", "kernel"):
            shapes |= {"fc.weight": shape[::-1], "fc.bias": shape[1:]}
        elif path[-2:] == ("conv", "kernel"):
            height, width, inside, outside = shape
            shapes[f"{name}.conv.weight"] = (outside, inside, height, width)
            shapes |= {f"{name}.bn.{leaf}": (outside,) for leaf in NORM_LEAVES}
    return shapes


@cache
def _our_shapes() -> dict[tuple[str, ...], tuple[int, ...]]:
    images = jnp.zeros((1, IMAGE_SIZE, IMAGE_SIZE, 3))
    shapes = jax.eval_shape(partial(Inception().init), jax.random.key(0), images)["params"]
    return {path: leaf.shape for path, leaf in flatten_dict(shapes).items()}


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise InputError(f"{path} is damaged ({error}); convert it again") from error


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    try:
        import torch  # large, and only this needs it
    except ImportError:
        raise InputError(
            f"reading {path} needs torch: pip install torch, or write its tensors where torch is "
            "installed with safetensors.torch.save_file, and pass that .safetensors"
        ) from None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        return {name: tensor.numpy() for name, tensor in state.items()}
    except Exception as error:  # of a dozen kinds, with pages of advice
        raise InputError(
            f"{path} is not a whole PyTorch file of weights: {HOW_TO_FETCH}"
        ) from error
