"""From latents to tokens and back: the one place that knows a latent's height and width."""

from dataclasses import dataclass

import jax
import numpy as np

from sra_jax.core.errors import InputError
from sra_jax.models.layers import MAX_PERIOD


@dataclass(frozen=True)
class LatentLayout:
    """The shape of latents [B, height, width, channels], and the side of the patches.

    A patch is `patch` x `patch` values; tokens are patches in row-major order. A latent of width 1
    is a sequence: its patches are `patch` x 1, and its position table has one dimension.

    Raises:
      InputError: a size below 1, or a patch that does not divide the latent.
    """

    height: int
    width: int
    channels: int
    patch: int

    def __post_init__(self):
        for name, value in vars(self).items():
            if value < 1:
                raise InputError(f"latent {name} is {value}, expected at least 1")
        for side, patch in zip(self.shape, self._patch, strict=False):
            if side % patch:
                raise InputError(
                    f"patch size {patch} does not divide the latent's side {side}; choose one that "
                    "does"
                )

    @property
    def shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of one latent."""
        return self.height, self.width, self.channels

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.height // self._patch[0], self.width // self._patch[1]

    @property
    def tokens(self) -> int:
        """How many patches there are."""
        return self.grid[0] * self.grid[1]

    @property
    def patch_values(self) -> int:
        """Values of one channel in a patch."""
        return self._patch[0] * self._patch[1]

    @property
    def _patch(self) -> tuple[int, int]:
        return self.patch, (self.patch if self.width > 1 else 1)

    def patchify(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] -> [B, N, patch values * C]; a patch is ordered (row, column, channel)."""
        (rows, columns), (high, wide) = self.grid, self._patch
        x = x.reshape(len(x), rows, high, columns, wide, -1).transpose(0, 1, 3, 2, 4, 5)
        return x.reshape(len(x), rows * columns, -1)

    def unpatchify(self, tokens: jax.Array) -> jax.Array:
        """[B, N, patch values * C] -> [B, H, W, C] for any C: the inverse of `patchify`."""
        (rows, columns), (high, wide) = self.grid, self._patch
        x = tokens.reshape(len(tokens), rows, columns, high, wide, -1).transpose(0, 1, 3, 2, 4, 5)
        return x.reshape(len(tokens), self.height, self.width, -1)

    def position_table(self, dim: int) -> np.ndarray:
        """The fixed sine-cosine table [N, dim], float32.

        In two dimensions the x half comes first, then the y half, each [sines, cosines] (DiT). In
        one dimension sine and cosine alternate (MAE-Tok).
        """
        rows, columns = self.grid
        if self.width == 1:
            omega = MAX_PERIOD ** -(np.arange(dim // 2, dtype=np.float64) / (dim // 2))
            angles = np.outer(np.arange(rows), omega)
            return np.stack([np.sin(angles), np.cos(angles)], -1).reshape(rows, -1).astype("f4")
        omega = MAX_PERIOD ** -(np.arange(dim // 4, dtype=np.float64) / (dim // 4))
        y, x = np.divmod(np.arange(rows * columns), columns)
        angles = [np.outer(axis, omega) for axis in (x, y)]
        table = [f(angle) for angle in angles for f in (np.sin, np.cos)]
        return np.concatenate(table, axis=1).astype(np.float32)
