"""The embedded data sets, which need no download.

`EMBEDDED` holds their names and images; `ensure_embedded` writes their latents to disk.
"""

import os
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from sra_jax.codecs import PixelCodec
from sra_jax.data.shapes import load_shapes
from sra_jax.data.spec import LatentSpec


def load_digits() -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's handwritten digits.

    Returns:
        Images uint8 `[1797, 8, 8, 1]` in [0, 255] and labels int32 `[1797]` in [0, 10).
    """
    from sklearn import datasets  # takes a second to import

    digits = datasets.load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    return images[..., None], digits.target.astype(np.int32)


class Embedded(NamedTuple):
    """One embedded data set.

    Attributes:
        load: returns images uint8 `[N, *shape]` and labels int32 `[N]` in [0, num_classes).
        shape: `(H, W, C)` of an image.
        num_classes: number of classes.
        dtype: dtype of the stored moments.
    """

    load: Callable[[], tuple[np.ndarray, np.ndarray]]
    shape: tuple[int, int, int]
    num_classes: int
    dtype: str


EMBEDDED = {
    "embedded:digits": Embedded(load_digits, (8, 8, 1), 10, "float32"),
    # float16 represents every pixel exactly, and keeps the shapes at 250 MB.
    "embedded:shapes": Embedded(load_shapes, (32, 32, 3), 16, "float16"),
}
EMBEDDED_NAMES = " or ".join(EMBEDDED)

_BATCH = 1000  # images encoded at a time; their moments take 8 times the memory of the images


def ensure_embedded(name: str, folder: str | os.PathLike) -> str:
    """Writes an embedded set as latents of codec "pixels", unless they exist already.

    Several processes may call this at once. A killed call leaves no readable data set behind.

    Args:
        name: "embedded:SET", a key of `EMBEDDED`.
        folder: the directory to write to; the latents go to FOLDER/SET.

    Returns:
        The path FOLDER/SET.

    Raises:
        InputError: FOLDER/SET is something else, is damaged, or is not on a disk.
    """
    # Imported here: it needs TensorFlow Datasets, and the images themselves do not.
    from sra_jax.data.records import holds_latents, write_latents

    directory = os.path.join(folder, name.partition(":")[2])
    if holds_latents(directory):
        return directory
    embedded, codec = EMBEDDED[name], PixelCodec()
    images, labels = embedded.load()
    spec = LatentSpec(
        codec=codec.name,
        scale=codec.scale,
        shift=codec.shift,
        latent_shape=embedded.shape,
        resolution=embedded.shape[0],
        image_channels=embedded.shape[2],
        num_classes=embedded.num_classes,
        dtype=embedded.dtype,
    )
    rows = [slice(first, first + _BATCH) for first in range(0, len(images), _BATCH)]
    batches = ((codec.encode(images[part]), labels[part]) for part in rows)
    try:
        write_latents(directory, spec, [batches])
    except Exception:
        if not holds_latents(directory):  # if it does, another process was faster
            raise
    return directory
