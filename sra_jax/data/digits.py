"""1797 handwritten digits of 8x8 pixels, carried by scikit-learn."""

import numpy as np


def load_digits() -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 `[1797, 8, 8, 1]` in [0, 255] and labels int32 `[1797]` in [0, 10)."""
    from sklearn.datasets import load_digits as load  # a second to import, wanted only here

    digits = load()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    return images[..., None], digits.target.astype(np.int32)
