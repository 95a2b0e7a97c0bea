"""Codecs between images and the latents that a model is trained on."""

import os

from sra_jax.codecs.base import Codec
from sra_jax.codecs.pixels import PixelCodec
from sra_jax.codecs.sd_vae import SDVAECodec
from sra_jax.codecs.sd_vae_weights import load_sd_vae
from sra_jax.core.errors import InputError, expect_one_of


def codec_from_name(
    name: str,
    scale: float | None = None,
    shift: float | None = None,
    vae: str | os.PathLike | None = None,
) -> Codec:
    """The codec called `name`, whose latents are `(mean + std * eps) * scale + shift`.

    Scale and shift are the codec's own if not given. `vae` is where the weights of an SD-VAE lie,
    see `load_sd_vae`.

    Raises:
        InputError: no codec has that name, or `vae` is missing, superfluous or does not load.
    """
    expect_one_of("codec", name, (PixelCodec.name, SDVAECodec.name))
    if name == SDVAECodec.name:
        return load_sd_vae(vae, scale, shift)
    if vae is not None:
        raise InputError(f"codec {name} has no weights, but --vae is {vae}; leave it out")
    given = {"scale": scale, "shift": shift}
    return PixelCodec(**{key: value for key, value in given.items() if value is not None})
