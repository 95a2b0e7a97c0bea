"""The Inception-v3 that FID is defined by: the TensorFlow graph of 2015-12-05, in Flax.

FID, sFID and Inception Score are defined by this one network, not by Inception-v3 in general. It
differs from the usual one (Szegedy et al. 2016) in four ways: images are enlarged as in TensorFlow
1, average pools do not count their padding, the last block has a maximum pool in place of the
average, and there are 1008 classes. Modules are named as in the PyTorch port, whose weights
`inception_weights` reads. Batch normalisation is folded into the convolutions.
"""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

IMAGE_SIZE = 299
CLASSES = 1008
POOL_WIDTH = 2048
SPATIAL_CHANNELS = 7
SPATIAL_WIDTH = 17 * 17 * SPATIAL_CHANNELS
EXACT = jax.lax.Precision.HIGHEST  # else accelerators multiply float32 in fewer bits


class Features(NamedTuple):
    """The outputs that the metrics are computed from, float32.

    `pool` [B, 2048]: the last average pool (FID, precision, recall). `spatial` [B, 17, 17, 7]: the
    first channels of the graph's mixed_6/conv, after its ReLU (sFID). `logits` [B, 1008], and
    `logits_unbiased` without the last bias (Inception Score).
    """

    pool: jax.Array
    spatial: jax.Array
    logits: jax.Array
    logits_unbiased: jax.Array


class Inception(nn.Module):
    """Images [B, H, W, 3] with values in [0, 255], of any size and type -> `Features`."""

    @nn.compact
    def __call__(self, images: jax.Array) -> Features:
        x = (resize(images.astype(jnp.float32), IMAGE_SIZE) - 128) / 128
        x = Conv(32, (3, 3), 2, "VALID", name="Conv2d_1a_3x3")(x)
        x = Conv(32, (3, 3), 1, "VALID", name="Conv2d_2a_3x3")(x)
        x = Conv(64, (3, 3), name="Conv2d_2b_3x3")(x)
        x = _halve(x)
        x = Conv(80, name="Conv2d_3b_1x1")(x)
        x = Conv(192, (3, 3), 1, "VALID", name="Conv2d_4a_3x3")(x)
        x = _halve(x)  # [B, 35, 35, 192]
        for letter, width in zip("bcd", (32, 64, 64), strict=True):
            x = BlockA(width, name=f"Mixed_5{letter}")(x)
        x = BlockB(name="Mixed_6a")(x)  # [B, 17, 17, 768]
        for letter, width in zip("bcd", (128, 160, 160), strict=True):
            x = BlockC(width, name=f"Mixed_6{letter}")(x)
        spatial = x[..., :SPATIAL_CHANNELS]  # a block's 1x1 branch comes first
        x = BlockC(192, name="Mixed_6e")(x)
        x = BlockD(name="Mixed_7a")(x)  # [B, 8, 8, 1280]
        x = BlockE(_average, name="Mixed_7b")(x)
        x = BlockE(_maximum, name="Mixed_7c")(x)
        pool = x.mean(axis=(1, 2))
        unbiased = nn.Dense(CLASSES, use_bias=False, precision=EXACT, name="fc")(pool)
        bias = self.param("fc_bias", nn.initializers.zeros, (CLASSES,))
        return Features(pool, spatial, unbiased + bias, unbiased)


class Conv(nn.Module):
    """Convolution, then ReLU: [B, H, W, C] -> [B, H', W', width]."""

    width: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: str = "SAME"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv = nn.Conv(
            self.width,
            self.kernel,
            self.stride,
            self.padding,
            precision=EXACT,
            name="conv",
        )
        return nn.relu(conv(x))


class BlockA(nn.Module):
    """[B, 35, 35, C] -> [B, 35, 35, 224 + pool_width]."""

    pool_width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        single = Conv(64, name="branch1x1")(x)
        five = Conv(48, name="branch5x5_1")(x)
        five = Conv(64, (5, 5), name="branch5x5_2")(five)
        three = Conv(64, name="branch3x3dbl_1")(x)
        three = Conv(96, (3, 3), name="branch3x3dbl_2")(three)
        three = Conv(96, (3, 3), name="branch3x3dbl_3")(three)
        pooled = Conv(self.pool_width, name="branch_pool")(_average(x))
        return _join(single, five, three, pooled)


class BlockB(nn.Module):
    """[B, 35, 35, 288] -> [B, 17, 17, 768]."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        single = Conv(384, (3, 3), 2, "VALID", name="branch3x3")(x)
        double = Conv(64, name="branch3x3dbl_1")(x)
        double = Conv(96, (3, 3), name="branch3x3dbl_2")(double)
        double = Conv(96, (3, 3), 2, "VALID", name="branch3x3dbl_3")(double)
        return _join(single, double, _halve(x))


class BlockC(nn.Module):
    """[B, 17, 17, 768] -> the same shape; `width` is that of the 7x7 branches inside."""

    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        row, column = (1, 7), (7, 1)
        single = Conv(192, name="branch1x1")(x)
        seven = Conv(self.width, name="branch7x7_1")(x)
        seven = Conv(self.width, row, name="branch7x7_2")(seven)
        seven = Conv(192, column, name="branch7x7_3")(seven)
        double = Conv(self.width, name="branch7x7dbl_1")(x)
        double = Conv(self.width, column, name="branch7x7dbl_2")(double)
        double = Conv(self.width, row, name="branch7x7dbl_3")(double)
        double = Conv(self.width, column, name="branch7x7dbl_4")(double)
        double = Conv(192, row, name="branch7x7dbl_5")(double)
        pooled = Conv(192, name="branch_pool")(_average(x))
        return _join(single, seven, double, pooled)


class BlockD(nn.Module):
    """[B, 17, 17, 768] -> [B, 8, 8, 1280]."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        three = Conv(192, name="branch3x3_1")(x)
        three = Conv(320, (3, 3), 2, "VALID", name="branch3x3_2")(three)
        seven = Conv(192, name="branch7x7x3_1")(x)
        seven = Conv(192, (1, 7), name="branch7x7x3_2")(seven)
        seven = Conv(192, (7, 1), name="branch7x7x3_3")(seven)
        seven = Conv(192, (3, 3), 2, "VALID", name="branch7x7x3_4")(seven)
        return _join(three, seven, _halve(x))


class BlockE(nn.Module):
    """[B, 8, 8, C] -> [B, 8, 8, 2048]; `pool` pools 3x3 in its last branch."""

    pool: Callable[[jax.Array], jax.Array]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        single = Conv(320, name="branch1x1")(x)
        three = Conv(384, name="branch3x3_1")(x)
        row = Conv(384, (1, 3), name="branch3x3_2a")(three)
        column = Conv(384, (3, 1), name="branch3x3_2b")(three)
        double = Conv(448, name="branch3x3dbl_1")(x)
        double = Conv(384, (3, 3), name="branch3x3dbl_2")(double)
        double_row = Conv(384, (1, 3), name="branch3x3dbl_3a")(double)
        double_column = Conv(384, (3, 1), name="branch3x3dbl_3b")(double)
        pooled = Conv(192, name="branch_pool")(self.pool(x))
        return _join(single, row, column, double_row, double_column, pooled)


def resize(images: jax.Array, size: int) -> jax.Array:
    """Images [B, H, W, C] -> [B, size, size, C], bilinear as TensorFlow 1 does it.

    Output pixel i is read at i * H / size: corners are not aligned, pixel centres are not half a
    step in, and there is no antialiasing.
    """
    for axis in (2, 1):
        images = _resize_axis(images, axis, size)
    return images


def _resize_axis(x: jax.Array, axis: int, size: int) -> jax.Array:
    length = x.shape[axis]
    position = np.arange(size, dtype=np.float32) * np.float32(length / size)
    low = position.astype(np.int32)
    high = np.minimum(low + 1, length - 1)
    weight = np.expand_dims(position - low, [i for i in range(x.ndim - 1) if i != axis - 1])
    below, above = (jnp.take(x, index, axis) for index in (low, high))
    return below + (above - below) * weight


def _halve(x: jax.Array) -> jax.Array:
    return nn.max_pool(x, (3, 3), (2, 2))


def _average(x: jax.Array) -> jax.Array:
    return nn.avg_pool(x, (3, 3), padding="SAME", count_include_pad=False)


def _maximum(x: jax.Array) -> jax.Array:
    return nn.max_pool(x, (3, 3), padding="SAME")


def _join(*branches: jax.Array) -> jax.Array:
    return jnp.concatenate(branches, axis=-1)
