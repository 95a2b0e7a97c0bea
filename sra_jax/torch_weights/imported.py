"""Imports PyTorch checkpoints: a model is recognised and checked first, then read tree by tree."""

import dataclasses
import logging
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from sra_jax.codecs import PixelCodec, SDVAECodec
from sra_jax.codecs.sd_vae import VAEConfig
from sra_jax.core.errors import InputError
from sra_jax.core.random import stream_key
from sra_jax.core.state_dict import find_mismatch
from sra_jax.data.spec import LatentSpec
from sra_jax.models import DiTConfig
from sra_jax.torch_weights.files import FileTensor, StateDict, TorchCheckpoint
from sra_jax.torch_weights.layout import (
    fresh_params,
    from_torch,
    released_methods,
    to_torch,
    torch_shapes,
)
from sra_jax.torch_weights.original_sit import OUTPUT_WEIGHT, reverse_time
from sra_jax.torch_weights.recognise import (
    PROJECTORS,
    Recognised,
    clean_names,
    position_drift,
    recognise,
)

IMAGE_CHANNELS = (1, 3)
MAX_DRIFT = 1e-3  # of a position table from its formula; training moves it by a tenth of that

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Choices:
    """What a user decides about an import.

    `layout` and `num_heads` override what the file says. `allow_mismatch` drops tensors that are
    left over and initialises those that are missing.
    """

    layout: str | None = None
    num_heads: int | None = None
    allow_mismatch: bool = False


class ImportedModel:
    """The model of a checkpoint whose tensors are still in their file.

    Attributes:
      found: the model that was recognised.

    Raises:
      InputError: the file holds no model of ours, or `choices` do not fit it.
    """

    def __init__(self, checkpoint: TorchCheckpoint, choices: Choices):
        trees = {name: _cleaned(tree) for name, tree in checkpoint.trees.items()}
        main = trees.get("ema") or trees["model"]
        self.found = recognise(main, checkpoint.args, choices.layout, choices.num_heads)
        self._trees = {
            name: _fitted(_without_projectors(tree, name), name, self.found, choices.allow_mismatch)
            for name, tree in trees.items()
        }
        _log_dtypes(self._trees)

    @property
    def trees(self) -> list[str]:
        """Which of "model" and "ema" there are."""
        return list(self._trees)

    def read(self, name: str) -> dict[str, Any]:
        """Reads the parameters of one tree as float32 arrays, and forgets the tree.

        They are `{"trunk": ..., "method": {NAME: ...}}`.
        """
        tree = self._trees.pop(name)
        config = self.found.config
        _log_position_drift(tree["pos_embed"], config, name)
        if self.found.layout == "sit":
            tree = reverse_time(tree, config)
        return from_torch(tree, config)


def _fitted(
    tree: StateDict, name: str, found: Recognised, allow_mismatch: bool
) -> Mapping[str, Any]:
    """The tree with exactly the tensors of the model that was found."""
    config = _stored_config(tree, found)
    methods = released_methods(tree)
    wanted = torch_shapes(config, methods)
    extra, missing = sorted(set(tree) - set(wanted)), sorted(set(wanted) - set(tree))
    if allow_mismatch and (extra or missing):
        _log.warning(
            "tensors of %s: dropped %s; initialised %s",
            name,
            ", ".join(extra) or "none",
            ", ".join(missing) or "none",
        )
        fresh = _fresh_tensors(config, methods) if missing else {}
        tree = {key: tree[key] if key in tree else fresh[key] for key in wanted}
    if mismatch := find_mismatch(tree, wanted):
        advice = "; --allow_mismatch drops what is left over and initialises what is missing"
        raise InputError(
            f"the tensors of {name} do not fit {found.describe()}: {mismatch}"
            + (advice if set(tree) != set(wanted) else "")
        )
    return tree


def _stored_config(tree: StateDict, found: Recognised) -> DiTConfig:
    """The config whose tensors are stored: the original SiT's last layer can be as large as DiT's,
    because it also predicts a variance, which `reverse_time` drops."""
    doubled = dataclasses.replace(found.config, outputs=2)
    shape = torch_shapes(doubled)[OUTPUT_WEIGHT]
    has_variance = OUTPUT_WEIGHT in tree and tree[OUTPUT_WEIGHT].shape == shape
    return doubled if found.layout == "sit" and has_variance else found.config


def _fresh_tensors(config: DiTConfig, methods: Collection[str]) -> dict[str, Any]:
    return to_torch(fresh_params(config, methods, stream_key(0, "init")), config)


def _log_position_drift(table: Any, config: DiTConfig, name: str) -> None:
    drift = position_drift(table, config)
    if drift > MAX_DRIFT:
        _log.warning(
            "the position table of %s is %.1e off its formula, more than training moves it; it is "
            "taken as stored",
            name,
            drift,
        )
    else:
        _log.info("position table of %s as stored, within %.1e of its formula", name, drift)


def latent_spec(config: DiTConfig) -> LatentSpec:
    """The spec of a published model's latents: the SD-VAE's, or pixels, by the number of channels.

    Raises:
      InputError: neither has this number of channels.
    """
    height, width, channels = config.layout.shape
    if channels == VAEConfig.latent_channels:
        name, codec, image_channels = SDVAECodec.name, VAEConfig(), VAEConfig.out_channels
    elif channels in IMAGE_CHANNELS:
        name, codec, image_channels = PixelCodec.name, PixelCodec(), channels
    else:
        raise InputError(
            f"the model takes {channels} channels; expected {VAEConfig.latent_channels} (the "
            f"SD-VAE's latents) or {' or '.join(map(str, IMAGE_CHANNELS))} (pixels)"
        )
    return LatentSpec(
        codec=name,
        scale=codec.scale,
        shift=codec.shift,
        latent_shape=(height, width, channels),
        resolution=height * codec.downsampling,
        image_channels=image_channels,
        num_classes=config.conditioning.num_classes,
    )


def _cleaned(tree: StateDict) -> StateDict:
    return {clean: tree[name] for clean, name in clean_names(tree).items()}


def _without_projectors(tree: StateDict, name: str) -> StateDict:
    """The tree without the heads that REPA trains: they are no part of the model."""
    kept = {key: tensor for key, tensor in tree.items() if not key.startswith(PROJECTORS)}
    if dropped := len(tree) - len(kept):
        _log.info("%s tensors of projectors dropped from %s", dropped, name)
    return kept


def _log_dtypes(trees: Mapping[str, Mapping[str, Any]]) -> None:
    tensors = [t for tree in trees.values() for t in tree.values() if isinstance(t, FileTensor)]
    for dtype, count in Counter(tensor.dtype for tensor in tensors).items():
        if dtype != "float32":
            _log.info("%s of %s tensors are %s, and become float32", count, len(tensors), dtype)
