"""A VAE as diffusers publishes it, a .safetensors file with config.json beside it, and as ours.

Nothing is downloaded, and no pickle is read.
"""

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from sra_jax.codecs.sd_vae import AutoencoderKL, SDVAECodec, VAEConfig
from sra_jax.core.errors import InputError
from sra_jax.core.state_dict import find_mismatch

WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
CONFIG_FILE = "config.json"
HOW_TO_FETCH = (
    f"fetch {WEIGHTS_FILE} and {CONFIG_FILE} of stabilityai/sd-vae-ft-ema (or -mse) from "
    "huggingface.co into one folder, and pass it as --vae=FOLDER"
)

# config.json has the names of VAEConfig, except for the scale and the shift.
CONFIG_FIELDS = [f.name for f in dataclasses.fields(VAEConfig) if f.name not in ("scale", "shift")]
QUANT_FIELDS = ("use_quant_conv", "use_post_quant_conv")  # newer: true if they are not given
NUMBER = (int, float)
FIELD_TYPES = {
    "block_out_channels": (list, "a list"),
    "scaling_factor": (NUMBER, "a number"),
    "shift_factor": (NUMBER, "a number"),
}
ONLY_VALUES = {
    "_class_name": "AutoencoderKL",
    "act_fn": "silu",
    "mid_block_add_attention": True,
    "latents_mean": None,
    "latents_std": None,
}
LEVEL_BLOCKS = {"down_block_types": "DownEncoderBlock2D", "up_block_types": "UpDecoderBlock2D"}
# The resolution of its training and whether it overflows in float16: nothing here depends on them.
IGNORED_FIELDS = ("sample_size", "force_upcast")

LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias"}
TORCH_AXES = {1: (0,), 2: (1, 0), 4: (3, 2, 0, 1)}  # of ours, by rank, in PyTorch's order
OUR_AXES = {1: (0,), 2: (1, 0), 4: (2, 3, 1, 0)}
OLDER_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
OLDER_LAYER = re.compile(rf"(?<=\.attentions\.0\.)({'|'.join(OLDER_ATTENTION)})(?=\.)")


def load_sd_vae(
    path: str | os.PathLike | None, scale: float | None = None, shift: float | None = None
) -> SDVAECodec:
    """The codec whose weights lie at `path`, ready on the default device.

    Args:
        path: a folder with `diffusion_pytorch_model.safetensors` and `config.json`, or a
            .safetensors file with `config.json` beside it.
        scale, shift: of the model's latents, as a data set remembers them; those of `config.json`
            if not given.

    Raises:
        InputError: there is no path or no such file, a file is damaged, or it holds another model.
    """
    # Imported here, so that codecs without weights need jax and flax only.
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    weights, described = _find_files(path)
    config = config_from_diffusers(_read_json(described))
    given = {"scale": scale, "shift": shift}
    config = dataclasses.replace(config, **{k: v for k, v in given.items() if v is not None})
    try:
        tensors = load_file(weights)
    except SafetensorError as error:
        raise InputError(f"{weights} is damaged ({error}); fetch it again") from error
    params = jax.device_put(params_from_diffusers(tensors, config))
    with weights.open("rb") as file:
        fingerprint = hashlib.file_digest(file, "sha256").hexdigest()
    return SDVAECodec(config, params, fingerprint)


def config_from_diffusers(fields: Mapping[str, Any]) -> VAEConfig:
    """Our config from the fields of diffusers' config.json.

    A latent is `(z - shift_factor) * scaling_factor` there, so our shift is minus their product.

    Raises:
        InputError: a field is missing, unknown, or has a value that is not supported.
    """
    if missing := [name for name in CONFIG_FIELDS if name not in (*fields, *QUANT_FIELDS)]:
        raise InputError(f"{CONFIG_FILE} of the VAE lacks {', '.join(missing)}; fetch it again")
    fields = {"scaling_factor": VAEConfig.scale, **fields}
    fields["shift_factor"] = fields.get("shift_factor") or 0.0  # null if there is none
    _check_fields(fields)
    ours = {name: fields[name] for name in CONFIG_FIELDS if name in fields}
    ours["block_out_channels"] = tuple(fields["block_out_channels"])
    scale = float(fields["scaling_factor"])
    return VAEConfig(**ours, scale=scale, shift=0.0 - fields["shift_factor"] * scale)


def params_from_diffusers(tensors: Mapping[str, np.ndarray], config: VAEConfig) -> dict[str, Any]:
    """Parameters of `AutoencoderKL(config)`, float32 numpy arrays, from diffusers' tensors.

    Takes both spellings of the mid-block attention.

    Raises:
        InputError: tensors that are missing, left over, or of another shape than `config` gives.
    """
    leaves = {_torch_name(path): (path, leaf.shape) for path, leaf in _our_leaves(config).items()}
    wanted = {
        name: tuple(shape[axis] for axis in TORCH_AXES[len(shape)])
        for name, (_, shape) in leaves.items()
    }
    given = {}
    for name, array in tensors.items():
        name = _modern_name(name, tensors)
        # Older files store the attention's matrices as 1x1 convolutions.
        is_matrix = len(wanted.get(name, ())) == 2 and array.shape[2:] == (1, 1)
        given[name] = array[:, :, 0, 0] if is_matrix else array
    if mismatch := find_mismatch(given, wanted):
        raise InputError(
            f"the VAE's tensors do not fit its {CONFIG_FILE}: {mismatch}; fetch both files from "
            "one place"
        )
    params = {
        path: np.ascontiguousarray(given[name].transpose(OUR_AXES[len(shape)]), np.float32)
        for name, (path, shape) in leaves.items()
    }
    return unflatten_dict(params)


def _find_files(path: str | os.PathLike | None) -> tuple[Path, Path]:
    """The weights' file and its config.json."""
    if path is None:
        raise InputError(f"codec {SDVAECodec.name} needs its weights: {HOW_TO_FETCH}")
    path = Path(path)
    weights = path if path.suffix == ".safetensors" else path / WEIGHTS_FILE
    described = weights.with_name(CONFIG_FILE)
    for file in (weights, described):
        if not file.is_file():
            raise InputError(f"no file {file}: {HOW_TO_FETCH}")
    return weights, described


def _read_json(path: Path) -> dict[str, Any]:
    try:
        fields = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}); fetch it again") from error
    if not isinstance(fields, dict):
        raise InputError(f"{path} holds no JSON object; fetch it again")
    return fields


def _check_fields(fields: Mapping[str, Any]) -> None:
    for name, (kind, words) in FIELD_TYPES.items():
        if not isinstance(fields[name], kind):
            raise _refused(name, fields[name], f"expected {words}; fetch it again")
    levels = len(fields["block_out_channels"])
    only = ONLY_VALUES | {name: [block] * levels for name, block in LEVEL_BLOCKS.items()}
    known = {*CONFIG_FIELDS, *FIELD_TYPES, *IGNORED_FIELDS, *only}
    for name, value in fields.items():
        if value != only.get(name, value):
            raise _refused(name, value, f"only {only[name]!r} is supported; use another VAE")
        if name not in known and not name.startswith("_"):
            raise _refused(name, value, "which is unknown; remove it if nothing depends on it")


def _refused(name: str, value: Any, why: str) -> InputError:
    return InputError(f"{CONFIG_FILE} of the VAE has {name} = {value!r}, {why}")


def _our_leaves(config: VAEConfig) -> dict[tuple[str, ...], jax.ShapeDtypeStruct]:
    """Each of our parameters, as a shape, by its path."""

    def touch(model, pixels, latents):
        model.encode(pixels)
        model.decode(latents)

    size = config.downsampling
    pixels = jnp.zeros((1, size, size, config.in_channels))
    latents = jnp.zeros((1, 1, 1, config.latent_channels))
    init = partial(AutoencoderKL(config).init, method=touch)
    return flatten_dict(jax.eval_shape(init, jax.random.key(0), pixels, latents)["params"])


def _torch_name(path: tuple[str, ...]) -> str:
    *modules, leaf = path
    return ".".join([*modules, LEAVES[leaf]])


def _modern_name(name: str, tensors: Mapping[str, Any]) -> str:
    """The name that diffusers gives the tensor today; as it is if that one is there too."""
    modern = OLDER_LAYER.sub(lambda match: OLDER_ATTENTION[match[0]], name)
    return name if modern in tensors else modern
