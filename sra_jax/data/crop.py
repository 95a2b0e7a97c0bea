"""Images from files, and their centre crop as ADM and DiT make it."""

import os
from typing import BinaryIO

import numpy as np
from PIL import Image

from sra_jax.data.loading import BadItemError

# Grey or single-channel pixels of more than eight bits, which Pillow would clip, not scale.
_WIDE_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")


def read_image(file: str | os.PathLike | BinaryIO) -> Image.Image:
    """The image in `file`, in RGB of eight bits.

    Grey, palette, CMYK and 16-bit RGB images are converted and transparency is dropped, all as
    Pillow does it; a camera's orientation tag is not heeded. The data sets of ADM and DiT were made
    this way.

    Raises:
        BadItemError: it is unreadable or cut short, animated, or grey of more than eight bits.
    """
    try:
        with Image.open(file) as image:
            # What follows the first frame of a multi-picture JPEG (MPO) are previews of it.
            if getattr(image, "is_animated", False) and image.format != "MPO":
                raise BadItemError(f"animated, with {image.n_frames} frames; extract one of them")
            if image.mode in _WIDE_MODES:
                raise BadItemError(f"grey of more than 8 bits, mode {image.mode}; convert it")
            return image.convert("RGB")
    except BadItemError:
        raise
    except Exception as error:  # decoders raise whatever a broken file leads them into
        raise BadItemError(f"unreadable: {' '.join(str(error).split())}") from error


def center_crop(image: Image.Image, size: int) -> np.ndarray:
    """The centre of `image`, scaled to fill the square: uint8 `[size, size, 3]`.

    Halved by box averages while its shorter side is at least `2 * size`, then resized bicubically
    until that side is `size`, then cropped. This is `center_crop_arr` of ADM (Dhariwal and Nichol
    2021, github.com/openai/guided-diffusion, image_datasets.py), which DiT, SiT, EDM2 and REPA use;
    the pixels agree exactly.
    """
    while min(image.size) >= 2 * size:
        width, height = image.size
        image = image.resize((width // 2, height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    width, height = (round(side * scale) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return np.asarray(image)[top : top + size, left : left + size]
