"""A PyTorch checkpoint as a model of ours: recognised and checked at once, read tree by tree."""

import dataclasses
import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax

from sra_jax.codecs import PixelCodec, SDVAECodec
from sra_jax.codecs.sd_vae import VAEConfig
from sra_jax.core.errors import InputError
from sra_jax.core.random import stream_key
from sra_jax.data.spec import LatentSpec
from sra_jax.models import DiffusionTransformer, TransformerConfig, init_params
from sra_jax.models.layers import position_table
from sra_jax.torch_weights.files import FileTensor, StateDict, TorchCheckpoint
from sra_jax.torch_weights.layout import from_torch, to_torch, torch_shapes
from sra_jax.torch_weights.original_sit import OUTPUT_BIAS, OUTPUT_WEIGHT, reverse_time
from sra_jax.torch_weights.recognise import PROJECTORS, clean_names, position_drift, recognise

IMAGE_CHANNELS = (1, 3)
MAX_DRIFT = 1e-3  # of a position table from its formula; training moves it by a tenth of that

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Choices:
    """What a user decides about an import.

    `layout` and `num_heads` go before what the file says. `resolution` is that of the images, where
    it is to be another one: a new position table is made. `new_head` makes a projection head for a
    model that has none; `allow_mismatch` drops tensors that are left over and initialises those
    missing.
    """

    layout: str | None = None
    num_heads: int | None = None
    resolution: int | None = None
    new_head: bool = False
    allow_mismatch: bool = False


class ImportedModel:
    """The model of a checkpoint whose tensors are still in their file.

    Attributes:
      found: what it was recognised as, at the size asked for, with the head it will have.
      projectors: REPA's projectors, by tree ("model" or "ema") and clean name.

    Raises:
      InputError: it is no model of ours, or `choices` do not fit it.
    """

    def __init__(self, checkpoint: TorchCheckpoint, choices: Choices):
        trees = {name: _cleaned(tree) for name, tree in checkpoint.trees.items()}
        main = trees.get("ema") or trees["model"]
        stored = recognise(main, checkpoint.args, choices.layout, choices.num_heads)
        if choices.new_head and stored.head:
            raise InputError("the file has a projection head; leave --new_head out")
        self._stored, self._choices = stored, choices
        self.found = stored
        if choices.resolution is not None:
            size = _input_size(choices.resolution, stored.config)
            config = dataclasses.replace(stored.config, input_size=size)
            self.found = dataclasses.replace(stored, config=config)
        if choices.new_head:
            self.found = dataclasses.replace(self.found, head=True)
        self.projectors = {name: _projectors(tree) for name, tree in trees.items()}
        self._trees = {name: _without(tree, self.projectors[name]) for name, tree in trees.items()}
        for name, tree in self._trees.items():
            self._trees[name] = self._fitted(tree, name)
        _tell_dtypes(self._trees)

    @property
    def trees(self) -> list[str]:
        """Which of "model" and "ema" there are."""
        return list(self._trees)

    @property
    def new_head(self) -> bool:
        """Whether the head is made, and not read."""
        return self.found.head and not self._stored.head

    def read(self, name: str) -> dict[str, Any]:
        """The parameters of one tree, float32 arrays, with the new head if there is to be one: the
        same for every tree. Forgets the tree."""
        tree = self._trees.pop(name)
        config = self.found.config
        self._tell_positions(tree["pos_embed"], name)
        if config.input_size != self._stored.config.input_size:
            tree["pos_embed"] = position_table(config.grid, config.width)[None]
        if self.found.layout == "sit":
            tree = reverse_time(tree, config)
        params = from_torch(tree, config)
        return params | {"head": self._init_head()} if self.new_head else params

    def _init_head(self) -> dict[str, Any]:
        model = DiffusionTransformer(self.found.config)
        return jax.jit(lambda key: init_params(model, key, True)["head"])(stream_key(0, "init"))

    def _fitted(self, tree: StateDict, name: str) -> dict[str, Any]:
        """The tree with exactly the tensors of the model."""
        wanted = torch_shapes(self._stored.config, self._stored.head)
        extra, missing = sorted(set(tree) - set(wanted)), sorted(set(wanted) - set(tree))
        lists = {"left over": extra, "missing": missing}
        if extra or missing:
            listing = "; ".join(f"{kind}: {', '.join(ns)}" for kind, ns in lists.items() if ns)
            if not self._choices.allow_mismatch:
                raise InputError(
                    f"the tensors of {name} do not fit {self._stored.describe()}; {listing}; "
                    "--allow_mismatch drops what is left over and initialises what is missing"
                )
            _log.warning("tensors of %s dropped or initialised; %s", name, listing)
        kept = _without(tree, extra)
        for key, tensor in kept.items():
            given, shape = tuple(tensor.shape), wanted[key]
            if self._stored.layout == "sit" and key in (OUTPUT_WEIGHT, OUTPUT_BIAS):
                shape = (given[0], *shape[1:])  # with or without a variance
            if given != shape:
                raise InputError(f"tensor {key} of {name} has shape {given}, expected {shape}")
        if missing:
            model = DiffusionTransformer(self._stored.config)
            params = init_params(model, stream_key(0, "init"), self._stored.head)
            fresh = to_torch(params, self._stored.config)
            kept |= {key: fresh[key] for key in missing}
        return kept

    def _tell_positions(self, table: Any, name: str) -> None:
        drift = position_drift(table, self._stored.config)
        ours, theirs = self.found.config, self._stored.config
        if ours.input_size != theirs.input_size:
            _log.info("position table made anew for %sx%s patches", ours.grid, ours.grid)
        elif drift > MAX_DRIFT:
            _log.warning(
                "the position table of %s is %.1e off its formula, more than training moves it; it "
                "is taken as stored",
                name,
                drift,
            )
        else:
            _log.info("position table of %s as stored, within %.1e of its formula", name, drift)


def latent_spec(config: TransformerConfig) -> LatentSpec:
    """What the latents of a published model are: the SD-VAE's, or pixels where there are as many
    channels. No data set has been seen yet.

    Raises:
      InputError: the channels are of neither.
    """
    name, codec = _codec(config.in_channels)
    side, channels = config.input_size, config.in_channels
    return LatentSpec(
        codec=name,
        scale=codec.scale,
        shift=codec.shift,
        latent_shape=(side, side, channels),
        resolution=side * codec.downsampling,
        image_channels=channels if name == PixelCodec.name else VAEConfig.out_channels,
        num_classes=config.num_classes,
    )


def _codec(channels: int) -> tuple[str, PixelCodec | VAEConfig]:
    """The name of the codec whose latents have so many channels, and what knows their scale."""
    if channels == VAEConfig.latent_channels:
        return SDVAECodec.name, VAEConfig()
    if channels in IMAGE_CHANNELS:
        return PixelCodec.name, PixelCodec()
    raise InputError(
        f"the model takes {channels} channels; expected {VAEConfig.latent_channels} (the SD-VAE's "
        f"latents) or {' or '.join(map(str, IMAGE_CHANNELS))} (pixels)"
    )


def _input_size(resolution: int, config: TransformerConfig) -> int:
    """The side of the latents of images of that resolution."""
    multiple = config.patch_size * _codec(config.in_channels)[1].downsampling
    if resolution < multiple or resolution % multiple:
        raise InputError(f"resolution is {resolution}, expected a multiple of {multiple}")
    return config.patch_size * (resolution // multiple)


def _cleaned(tree: StateDict) -> StateDict:
    return {clean: tree[name] for clean, name in clean_names(tree).items()}


def _projectors(tree: StateDict) -> StateDict:
    return {name: tensor for name, tensor in tree.items() if name.startswith(PROJECTORS)}


def _without(tree: Mapping[str, Any], names) -> dict[str, Any]:
    return {name: tensor for name, tensor in tree.items() if name not in names}


def _tell_dtypes(trees: Mapping[str, Mapping[str, Any]]) -> None:
    tensors = [t for tree in trees.values() for t in tree.values() if isinstance(t, FileTensor)]
    for dtype, count in Counter(tensor.dtype for tensor in tensors).items():
        if dtype != "float32":
            _log.info("%s of %s tensors are %s, and become float32", count, len(tensors), dtype)
