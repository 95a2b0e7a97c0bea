"""Many images as one picture."""

import os
from typing import BinaryIO

import numpy as np
from PIL import Image

MIN_SIDE = 48  # smaller images are enlarged to about this, without blur
GAP = 2
MAX_IMAGES = 100
COLUMNS = 10


def image_grid(images: np.ndarray) -> np.ndarray:
    """Tiles the first 100 of `images` uint8 [N, H, W, C], ten a row, on white: uint8 [h, w, 3]."""
    images = images[:MAX_IMAGES]
    enlarge = max(1, MIN_SIDE // images.shape[1])
    images = images.repeat(enlarge, axis=1).repeat(enlarge, axis=2)
    if images.shape[-1] == 1:
        images = images.repeat(3, axis=-1)
    count, height, width, _ = images.shape
    columns = min(COLUMNS, count)
    rows = -(-count // columns)
    cell_height, cell_width = height + GAP, width + GAP
    grid = np.full((rows * cell_height + GAP, columns * cell_width + GAP, 3), 255, np.uint8)
    for i, image in enumerate(images):
        top, left = (i // columns) * cell_height + GAP, (i % columns) * cell_width + GAP
        grid[top : top + height, left : left + width] = image
    return grid


def save_grid(path: str | os.PathLike | BinaryIO, images: np.ndarray) -> None:
    """Writes `image_grid(images)` as a PNG, to a path or a file."""
    Image.fromarray(image_grid(images)).save(path, format="PNG")
