"""Decodes image files, and crops images as ADM and DiT do."""

import os
from typing import BinaryIO

import numpy as np
from PIL import Image

from sra_jax.data.loading import BadItemError

# Grey or single-channel pixels of more than eight bits, which Pillow would clip, not scale.
_WIDE_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")


def read_image(file: str | os.PathLike | BinaryIO) -> Image.Image:
    """Decodes an image file into RGB of eight bits.

    Pillow converts grey, palette, CMYK and 16-bit RGB images and drops transparency; a camera's
    orientation tag is ignored. The data sets of ADM and DiT were made this way.

    Raises:
        BadItemError: the file is unreadable, cut short, animated, or grey of more than eight bits.
    """
    try:
        with Image.open(file) as image:
            # In a multi-picture JPEG (MPO) the frames after the first are previews of it.
            if getattr(image, "is_animated", False) and image.format != "MPO":
                raise BadItemError(f"animated, with {image.n_frames} frames; extract one of them")
            if image.mode in _WIDE_MODES:
                raise BadItemError(f"grey of more than 8 bits, mode {image.mode}; convert it")
            return image.convert("RGB")
    except BadItemError:
        raise
    except Exception as error:  # a damaged file makes decoders raise errors of many kinds
        raise BadItemError(f"unreadable: {' '.join(str(error).split())}") from error


def center_crop(image: Image.Image, size: int) -> np.ndarray:
    """Scales `image` so that its shorter side is `size`, and crops the centre.

    The image is halved by box averages while its shorter side is at least `2 * size`, and then
    resized bicubically. This is `center_crop_arr` of ADM (Dhariwal and Nichol
    2021, github.com/openai/guided-diffusion, image_datasets.py), which DiT, SiT, EDM2 and REPA use;
    the pixels agree exactly.

    Returns:
        Pixels uint8 `[size, size, 3]`.
    """
    while min(image.size) >= 2 * size:
        width, height = image.size
        image = image.resize((width // 2, height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    width, height = (round(side * scale) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return np.asarray(image)[top : top + size, left : left + size]
