"""Reads PyTorch files tensor by tensor, without running code from them, and writes them.

A .pt or .pth is opened by `torch.load(weights_only=True)`. Beside tensors and plain values, only
argparse.Namespace is allowed, because the published checkpoints hold one. A .safetensors needs no
torch. Opening maps the file into memory. A tensor is read on access and becomes float32.
"""

import argparse
import contextlib
import ctypes
import mmap
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from sra_jax.core.errors import InputError, RunError
from sra_jax.core.files import DISK_ADVICE

TORCH_ENDINGS = (".pt", ".pth")
ENDINGS = (*TORCH_ENDINGS, ".safetensors")
TREES = ("model", "ema")  # the student and its average, as the training scripts save them
FLOATS = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
}
ZIP_MAGIC = b"PK\x03\x04"
PICKLE_STARTS = (b"\x80", b"c", b"(")  # a protocol from 2 on, and what stands first before that


@dataclass(frozen=True)
class FileTensor:
    """A tensor that stays in its file until `np.asarray` reads it, as float32.

    Reading raises InputError if its dtype is not one of `FLOATS` or its values are not finite.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray] = field(repr=False)

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        if self.dtype not in FLOATS.values():
            raise InputError(f"tensor {self.name} is {self.dtype}, expected floating point")
        array = self.read()
        if not np.isfinite(array).all():
            raise InputError(f"tensor {self.name} is not finite; take another checkpoint")
        return array.astype(dtype or np.float32, copy=False)


StateDict = dict[str, FileTensor]


@dataclass(frozen=True)
class TorchCheckpoint:
    """The state dicts of a file and the arguments it was trained with.

    `trees` has the names of `TREES`; a bare state dict is the "model".
    """

    trees: dict[str, StateDict]
    args: dict[str, Any]


def read_checkpoint(path: str | os.PathLike) -> TorchCheckpoint:
    """Opens a .pt, .pth or .safetensors file.

    Raises:
      InputError: no such file, it is damaged, holds code or something else than weights, or torch
        is not installed.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path} is a directory, expected a file; name one, or rename the workdir")
    if not path.is_file():
        raise InputError(f"no file {path}; check the path")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix not in TORCH_ENDINGS:
        raise InputError(f"{path} does not end in {', '.join(ENDINGS)}; name a file that does")
    with open(path, "rb") as file:
        start = file.read(len(ZIP_MAGIC))
    mapped = start == ZIP_MAGIC  # files from before PyTorch 1.6 are no zips and cannot be mapped
    if not mapped and start[:1] not in PICKLE_STARTS:
        raise _damaged(path, "PyTorch")
    return _checkpoint_of(_load_torch(path, mapped), path, mapped)


def write_checkpoint(
    path: Path, state_dict: Mapping[str, np.ndarray], facts: Mapping[str, Any]
) -> None:
    """Writes a state dict and `facts` about its model as a .pt or .safetensors file.

    A .safetensors is a bare state dict with the facts as metadata. A .pt holds the state dict as
    "ema", from which the authors' scripts sample, and the facts as "args".

    Raises:
      InputError: torch is needed and not installed.
      RunError: the disk is full or fails.
    """
    if path.suffix == ".safetensors":
        facts = {name: str(value) for name, value in facts.items()}
        with _failing_clearly(path):
            save_file(dict(state_dict), path, metadata={"format": "pt", **facts})
        return
    torch = import_torch(path)
    tensors = {
        name: torch.from_numpy(np.require(array, requirements="W"))
        for name, array in state_dict.items()
    }
    with _failing_clearly(path):
        torch.save({"ema": tensors, "args": dict(facts), "steps": facts.get("steps", 0)}, path)


@contextlib.contextmanager
def _failing_clearly(path: Path) -> Iterator[None]:
    """Turns the errors of torch and safetensors for a full or failing disk into a RunError."""
    try:
        yield
    except (RuntimeError, SafetensorError) as error:
        raise RunError(
            f"cannot write weights to {path.parent}: {str(error).splitlines()[0]}; {DISK_ADVICE}"
        ) from error


def import_torch(path: Path):
    """The torch module. Raises InputError, which says how to do without, if it is not there."""
    try:
        import torch  # large, and only .pt files need it
    except ImportError:
        raise InputError(
            f"{path} needs PyTorch: pip install torch, or use a .safetensors file, which does not"
        ) from None
    return torch


def _read_safetensors(path: Path) -> TorchCheckpoint:
    try:
        file = safe_open(path, framework="numpy")  # closed when its last tensor is gone
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise _damaged(path, "safetensors") from error
    tensors = {
        name: FileTensor(
            name,
            tuple(part.get_shape()),
            FLOATS.get(part.get_dtype(), part.get_dtype()),
            partial(file.get_tensor, name),
        )
        for name, part in slices.items()
    }
    return TorchCheckpoint({"model": tensors}, file.metadata() or {})


def _load_torch(path: Path, mapped: bool) -> Any:
    torch = import_torch(path)
    try:
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what then fails
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except UnpicklingError as error:
        reasons = (r"GLOBAL (\S+)", r"WeightsUnpickler error:\s+(.+)")
        found = next(filter(None, (re.search(reason, str(error)) for reason in reasons)), None)
        what = "code" if found is None else f"code ({found[1]})"
        raise InputError(
            f"{path} holds {what}, which was not run: only tensors, plain values and an "
            "argparse.Namespace are read; save its state dict alone, or fetch it again"
        ) from None
    except Exception as error:  # of a dozen kinds, with pages of advice
        raise _damaged(path, "PyTorch") from error


def _checkpoint_of(content: Any, path: Path, mapped: bool) -> TorchCheckpoint:
    if not isinstance(content, Mapping) or not content:
        raise InputError(f"{path} holds {_name(content)}, expected a state dict or a checkpoint")
    trees = {name: content[name] for name in TREES if isinstance(content.get(name), Mapping)}
    if not trees:
        trees, content = {"model": content}, {}
    args = content.get("args", {})
    args = vars(args) if isinstance(args, argparse.Namespace) else args
    return TorchCheckpoint(
        {name: _lazy(tree, path, mapped) for name, tree in trees.items()},
        dict(args) if isinstance(args, Mapping) else {},
    )


def _lazy(tree: Mapping[str, Any], path: Path, mapped: bool) -> StateDict:
    for key, value in tree.items():
        if not isinstance(key, str) or not _is_dense(value):
            shown = ", ".join(map(str, list(tree)[:6])) + (", ..." if len(tree) > 6 else "")
            raise InputError(
                f"{path} holds {shown}, of which {key} is {_name(value)}; expected dense tensors, "
                f"or a checkpoint with {' or '.join(TREES)}"
            )
    return {
        key: FileTensor(
            key,
            tuple(value.shape),
            str(value.dtype).removeprefix("torch."),
            partial(_read_torch, value, mapped),
        )
        for key, value in tree.items()
    }


def _is_dense(value: Any) -> bool:
    import torch

    return torch.is_tensor(value) and value.layout is torch.strided and not value.is_quantized


def _read_torch(tensor: Any, mapped: bool) -> np.ndarray:
    """A copy of a torch tensor, as float32."""
    array = np.array(tensor.detach().float().numpy())
    if mapped:
        _forget_pages(tensor.data_ptr(), tensor.numel() * tensor.element_size())
    return array


def _forget_pages(address: int, size: int) -> None:
    """Releases the pages of a mapped file that a tensor was read from.

    They would count as memory of this process until the file is closed: importing a file of 5.4 GB
    takes 7.8 GB at its peak with this and 13.2 GB without. Touching them again reads the file.
    """
    advise = getattr(ctypes.CDLL(None), "madvise", None)
    first = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE
    last = (address + size) // mmap.PAGESIZE * mmap.PAGESIZE
    if advise is not None and last > first:
        advise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), mmap.MADV_DONTNEED)


def _name(value: Any) -> str:
    return f"a {type(value).__name__}"


def _damaged(path: Path, kind: str) -> InputError:
    return InputError(
        f"{path} is not a whole {kind} file: damaged, cut short or of another kind; fetch it again"
    )
