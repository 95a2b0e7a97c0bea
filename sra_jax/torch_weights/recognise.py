"""Recognises published models by the names and shapes of their tensors in PyTorch."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sra_jax.conditioning import ClassLabels
from sra_jax.core.errors import InputError, expect_one_of
from sra_jax.core.state_dict import shorten
from sra_jax.models import SIZES, DiTConfig, LatentLayout, name_variant
from sra_jax.torch_weights.layout import released_methods
from sra_jax.torch_weights.original_sit import OUTPUT_WEIGHT, variance_rows

LAYOUTS = {
    "sra": "SRA's",
    "repa": "REPA's",
    "sit": "the original",
    "dit": "the original",
}
PROJECTORS = "projectors."
WRAPPERS = ("module.", "_orig_mod.")  # of DistributedDataParallel and torch.compile
MODEL_NAME = re.compile(r"(SiT|DiT)-(S|B|L|XL)/(\d+)")
ORIGINAL_SIT_PATHS = ("Linear", "GVP", "VP")  # the original SiT's spelling
PATHS = {"linear": "linear", "cosine": "cosine", "Linear": "linear", "GVP": "cosine"}
VELOCITY = ("v", "velocity")
SHAPES = {  # the axes of the tensors that the model's shape is read from
    "pos_embed": "[1, tokens, width]",
    "x_embedder.proj.weight": "[width, channels, patch, patch]",
    "y_embedder.embedding_table.weight": "[classes + 1, width]",
    "final_layer.linear.weight": "[patch * patch * outputs, width]",
    "blocks.0.mlp.fc1.weight": "[4 * width, width]",
}
MLP_RATIO = 4
FAMILIES = {1: "SiT", 2: "DiT"}  # by the values predicted for each latent channel


@dataclass(frozen=True)
class Recognised:
    """A published model.

    Attributes:
      layout: whose names and conventions it has, one of `LAYOUTS`.
      config: its shape.
      head: whether it has a projection head.
      heads_from: where the number of attention heads was found.
    """

    layout: str
    config: DiTConfig
    head: bool
    heads_from: str

    def describe(self) -> str:
        """One line for a log."""
        config = self.config
        name, layout = FAMILIES[config.outputs], config.layout
        variant = name_variant(config.width, config.depth, config.num_heads, layout.patch)
        latents = "x".join(map(str, layout.shape))
        return (
            f"{LAYOUTS[self.layout]} {name}{f'-{variant}' if variant else ''}: depth "
            f"{config.depth}, width {config.width}, {config.num_heads} heads (from "
            f"{self.heads_from}), patch {layout.patch}, latents {latents}, "
            f"{config.conditioning.num_classes:,} classes, {'a' if self.head else 'no'} "
            "projection head"
        )


def clean_names(names: Iterable[str]) -> dict[str, str]:
    """Maps each name without the prefix of a wrapper (`WRAPPERS`) to the name in the file.

    REPA's older files name the blocks above the aligned one `decoder_blocks` and count them from 0;
    here they continue the numbers of `blocks`.

    Raises:
      InputError: two tensors have one name.
    """
    cleaned: dict[str, str] = {}
    names = list(names)
    inner = [_unwrap(name) for name in names]
    first = sum(bool(re.fullmatch(r"blocks\.\d+\.attn\.qkv\.weight", name)) for name in inner)
    for name, clean in zip(names, inner, strict=True):
        if match := re.fullmatch(r"decoder_blocks\.(\d+)\.(.*)", clean):
            clean = f"blocks.{int(match[1]) + first}.{match[2]}"
        if clean in cleaned:
            raise InputError(f"tensors {cleaned[clean]} and {name} are both {clean}; keep one")
        cleaned[clean] = name
    return cleaned


def recognise(
    state_dict: Mapping[str, Any],
    args: Mapping[str, Any],
    layout: str | None = None,
    num_heads: int | None = None,
) -> Recognised:
    """Recognises the published model that a state dict holds.

    Args:
      state_dict: arrays, or anything with a shape, by clean name.
      args: the arguments that the model was trained with, as far as the file has them.
      layout: one of `LAYOUTS`; overrides what the file says.
      num_heads: number of attention heads; overrides what the file says.

    Raises:
      InputError: the model is not a published one, is not supported, or its number of attention
        heads is unknown.
    """
    if layout is not None:
        expect_one_of("layout", layout, LAYOUTS)
    _refuse_qk_norm(state_dict, args)
    if missing := set(SHAPES) - set(state_dict):
        raise InputError(
            f"the state dict is of no model known here: expected the tensors of SiT or DiT, "
            f"{len(missing)} of which are missing ({shorten(missing)}); found "
            f"{shorten(state_dict)}"
        )
    shapes = {name: _shape(state_dict, name) for name in SHAPES}
    width, channels, patch, _ = shapes["x_embedder.proj.weight"]
    outputs = shapes["final_layer.linear.weight"][0] / patch**2
    if outputs not in (channels, 2 * channels):
        raise InputError(
            f"the model takes {channels} channels and predicts {outputs:g}; expected {channels} "
            f"(SiT) or {2 * channels} (DiT, and SiT with a variance)"
        )
    hidden = shapes["blocks.0.mlp.fc1.weight"][0]
    if hidden != MLP_RATIO * width:
        raise InputError(
            f"the MLPs are {hidden} wide, expected {MLP_RATIO} times the width of {width}"
        )
    head = "sra" in released_methods(state_dict)
    found = layout or _find_layout(state_dict, args, outputs == 2 * channels, patch, channels)
    kind = "sit" if found in ("sit", "repa") or outputs == channels else "dit"
    if (found == "dit" and kind != "dit") or (found == "repa" and outputs != channels):
        raise InputError(
            f"no model of layout {found!r} predicts {outputs:g} channels from {channels}; leave "
            "--layout out, or choose another"
        )
    heads, heads_from = _find_heads(args, width, num_heads)
    side = patch * math.isqrt(shapes["pos_embed"][1])
    num_classes = shapes["y_embedder.embedding_table.weight"][0] - 1
    config = DiTConfig(
        LatentLayout(side, side, channels, patch),
        ClassLabels(num_classes),
        outputs={"sit": 1, "dit": 2}[kind],
        width=width,
        depth=_depth(state_dict),
        num_heads=heads,
    )
    if args.get("num_classes") == num_classes + 1:
        raise InputError(
            f"the label table has a row for each of the {args['num_classes']} classes and none for "
            "no class; expected one more (training with label dropout)"
        )
    return Recognised(found, config, head, heads_from)


def path_of(args: Mapping[str, Any]) -> str:
    """The interpolant's path, "linear" if the arguments have none.

    Raises:
      InputError: the path is unknown, or the model does not predict the velocity.
    """
    path, prediction = args.get("path_type", "linear"), args.get("prediction", "v")
    if path not in PATHS:
        raise InputError(
            f"the model was trained on the path {path!r}, expected {', '.join(PATHS)}; no other is "
            "supported"
        )
    if prediction not in VELOCITY:
        raise InputError(f"the model predicts {prediction!r}; only the velocity is supported")
    return PATHS[path]


def position_drift(table: np.ndarray, config: DiTConfig) -> float:
    """The largest difference of a stored position table [1, N, D] from its formula."""
    formula = config.layout.position_table(config.width)
    return float(np.abs(np.asarray(table, np.float64)[0] - formula).max())


def _unwrap(name: str) -> str:
    while name.startswith(WRAPPERS):
        name = name.partition(".")[2]
    return name


def _refuse_qk_norm(state_dict: Mapping[str, Any], args: Mapping[str, Any]) -> None:
    for name in state_dict:
        if re.search(r"\.attn\.[qk]_norm\.", name):
            raise InputError(
                f"the model normalises queries and keys ({name}, --qk-norm), which the transformer "
                "here does not; use a checkpoint trained without"
            )


def _shape(state_dict: Mapping[str, Any], name: str) -> tuple[int, ...]:
    """The shape of one of the tensors of `SHAPES`, with as many axes as it must have."""
    shape, axes = np.shape(state_dict[name]), SHAPES[name]
    fits = len(shape) == axes.count(",") + 1 and all(side > 0 for side in shape)
    if name == "pos_embed":
        fits = fits and shape[0] == 1 and math.isqrt(shape[1]) ** 2 == shape[1]
        axes += ", a square number of tokens"
    if name == "x_embedder.proj.weight":
        fits = fits and shape[2] == shape[3]
    if not fits:
        raise InputError(f"tensor {name} has shape {shape}, expected {axes}")
    return shape


def _find_layout(
    state_dict: Mapping[str, Any], args: Mapping[str, Any], doubled: bool, patch: int, channels: int
) -> str:
    """Whose model this is, where the caller does not say.

    The original SiT and DiT have tensors of the same names and shapes. What tells them apart, where
    the arguments do not: no loss reached the variance that SiT throws away, so it is still zero.
    """
    if any(name.startswith(PROJECTORS) for name in state_dict):
        return "repa"
    if released_methods(state_dict):
        return "sra"
    if "image_size" in args and args.get("path_type") in ORIGINAL_SIT_PATHS:
        return "sit"
    if not doubled:
        return "sra"
    if family := MODEL_NAME.fullmatch(str(args.get("model"))):
        return family[1].lower()
    return "dit" if variance_rows(state_dict[OUTPUT_WEIGHT], patch, channels).any() else "sit"


def _find_heads(args: Mapping[str, Any], width: int, asked: int | None) -> tuple[int, str]:
    """The number of attention heads, which no tensor tells, and where it was found."""
    if asked is not None:
        return asked, "--num_heads"
    if str(args.get("num_heads", "")).isdecimal():
        return int(args["num_heads"]), "num_heads in the file"
    name = MODEL_NAME.fullmatch(str(args.get("model")))
    if name and SIZES[name[2]].width == width:
        return SIZES[name[2]].num_heads, f"the file's model {name[0]}"
    for size in SIZES.values():
        if size.width == width:
            return size.num_heads, f"the published models of width {width}"
    raise InputError(
        f"nothing tells how many attention heads a model of width {width} has, and its tensors do "
        "not; give --num_heads"
    )


def _depth(state_dict: Mapping[str, Any]) -> int:
    """The number of blocks. Raises InputError if one is missing altogether."""
    names = (re.match(r"blocks\.(\d+)\.", name) for name in state_dict)
    numbers = {int(match[1]) for match in names if match}
    if missing := set(range(len(numbers))) - numbers:
        raise InputError(
            f"the state dict has {len(numbers)} blocks, but none numbered {min(missing)}; expected "
            "them numbered from 0"
        )
    return len(numbers)
