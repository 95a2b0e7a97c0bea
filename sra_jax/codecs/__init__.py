"""Codecs between images and the latents that a model is trained on."""

from sra_jax.codecs.base import Codec
from sra_jax.codecs.pixels import PixelCodec
from sra_jax.errors import expect_one_of

_CODECS = {PixelCodec.name: PixelCodec}


def codec_from_name(name: str, scale: float, shift: float) -> Codec:
    """The codec called `name`, whose latents are `(mean + std * eps) * scale + shift`.

    Raises:
        InputError: no codec has that name.
    """
    expect_one_of("codec", name, _CODECS)
    return _CODECS[name](scale=scale, shift=shift)
