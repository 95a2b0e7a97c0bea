"""The VAE of Stable Diffusion (Rombach et al. 2022, arXiv 2112.10752): images to latents and back.

Computed in float32 at full precision on every device: a data set is encoded once. The parameters
bear the names of diffusers' AutoencoderKL, dots included, so that `sd_vae_weights` can load them.
"""

import math
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from sra_jax.core.errors import InputError

GROUP_NORM_EPS = 1e-6
LOG_VARIANCE_RANGE = (-30.0, 20.0)


@dataclass(frozen=True)
class VAEConfig:
    """Shape of an AutoencoderKL, named as in diffusers' config.json; the defaults are SD's.

    `block_out_channels` has the width of each level, the finest first; between two levels lies a
    factor of 2. A level has `layers_per_block` residual blocks, in the decoder one more. A latent,
    as the model sees it, is `(mean + std * eps) * scale + shift`.

    Raises:
        InputError: a field has no valid value; names it.
    """

    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 4
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    norm_num_groups: int = 32
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    scale: float = 0.18215
    shift: float = 0.0

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type is int and not (isinstance(value, int) and value >= 1):
                raise InputError(f"VAE {field.name} is {value!r}, expected an integer above 0")
            if field.type is bool and not isinstance(value, bool):
                raise InputError(f"VAE {field.name} is {value!r}, expected true or false")
        groups, widths = self.norm_num_groups, self.block_out_channels
        if not widths or any(not isinstance(n, int) or n < 1 or n % groups for n in widths):
            raise InputError(
                f"VAE block_out_channels is {widths!r}, expected multiples of the {groups} groups"
            )
        if not (math.isfinite(self.scale) and math.isfinite(self.shift) and self.scale):
            raise InputError(
                f"VAE scale {self.scale} and shift {self.shift} must be finite, the scale not 0"
            )

    @property
    def downsampling(self) -> int:
        """Image pixels to one latent pixel, along each side."""
        return 2 ** (len(self.block_out_channels) - 1)


class ResidualBlock(nn.Module):
    """Pixels `[B, H, W, any]` -> `[B, H, W, width]`."""

    width: int
    groups: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        h = nn.silu(_norm(self.groups, "norm1")(x))
        h = nn.Conv(self.width, (3, 3), name="conv1")(h)
        h = nn.silu(_norm(self.groups, "norm2")(h))
        h = nn.Conv(self.width, (3, 3), name="conv2")(h)
        if x.shape[-1] != self.width:
            x = nn.Conv(self.width, (1, 1), name="conv_shortcut")(x)
        return x + h


class SelfAttention(nn.Module):
    """One head over all pixels of `[B, H, W, C]`, added to them."""

    groups: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, height, width, channels = x.shape
        h = _norm(self.groups, "group_norm")(x).reshape(batch, height * width, 1, channels)
        q, k, v = (nn.Dense(channels, name=name)(h) for name in ("to_q", "to_k", "to_v"))
        h = jax.nn.dot_product_attention(q, k, v, implementation="xla")
        return x + nn.Dense(channels, name="to_out.0")(h).reshape(x.shape)


class Encoder(nn.Module):
    """Pixels in [-1, 1] `[B, H, W, C]` -> mean and log-variance `[B, h, w, 2c]`."""

    config: VAEConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        config, groups = self.config, self.config.norm_num_groups
        x = nn.Conv(config.block_out_channels[0], (3, 3), name="conv_in")(x)
        for i, width in enumerate(config.block_out_channels):
            if i:  # the original pads below and to the right only
                down = f"down_blocks.{i - 1}.downsamplers.0.conv"
                pad = ((0, 1), (0, 1))
                x = nn.Conv(x.shape[-1], (3, 3), strides=2, padding=pad, name=down)(x)
            for j in range(config.layers_per_block):
                x = ResidualBlock(width, groups, name=f"down_blocks.{i}.resnets.{j}")(x)
        x = nn.silu(_norm(groups, "conv_norm_out")(_mid_block(x, groups)))
        return nn.Conv(2 * config.latent_channels, (3, 3), name="conv_out")(x)


class Decoder(nn.Module):
    """Latents before scale and shift `[B, h, w, c]` -> pixels, about in [-1, 1], `[B, H, W, C]`."""

    config: VAEConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        config, groups = self.config, self.config.norm_num_groups
        x = nn.Conv(config.block_out_channels[-1], (3, 3), name="conv_in")(x)
        x = _mid_block(x, groups)
        for i, width in enumerate(reversed(config.block_out_channels)):
            if i:
                x = x.repeat(2, axis=1).repeat(2, axis=2)
                x = nn.Conv(x.shape[-1], (3, 3), name=f"up_blocks.{i - 1}.upsamplers.0.conv")(x)
            for j in range(config.layers_per_block + 1):
                x = ResidualBlock(width, groups, name=f"up_blocks.{i}.resnets.{j}")(x)
        x = nn.silu(_norm(groups, "conv_norm_out")(x))
        return nn.Conv(config.out_channels, (3, 3), name="conv_out")(x)


class AutoencoderKL(nn.Module):
    """Encoder and decoder, each with its 1x1 convolution beside the latents where there is one."""

    config: VAEConfig

    def setup(self):
        config = self.config
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        if config.use_quant_conv:
            self.quant_conv = nn.Conv(2 * config.latent_channels, (1, 1))
        if config.use_post_quant_conv:
            self.post_quant_conv = nn.Conv(config.latent_channels, (1, 1))

    def encode(self, pixels: jax.Array) -> jax.Array:
        """Pixels in [-1, 1] `[B, H, W, C]` -> mean and log-variance `[B, h, w, 2c]`."""
        h = self.encoder(pixels)
        return self.quant_conv(h) if self.config.use_quant_conv else h

    def decode(self, latents: jax.Array) -> jax.Array:
        """Latents before scale and shift `[B, h, w, c]` -> pixels `[B, H, W, C]`."""
        h = self.post_quant_conv(latents) if self.config.use_post_quant_conv else latents
        return self.decoder(h)


def encode_images(config: VAEConfig, params: Any, images: jax.Array) -> jax.Array:
    """Images uint8 `[B, S, S, C]` -> moments float32 `[B, s, s, 2c]`: mean and standard deviation,
    before scale and shift. Pure: jit it with any sharding of the batch.

    Raises:
        InputError: the images are not uint8, not square, of a size that the downsampling does not
            divide, or of other channels.
    """
    _check_images(config, images)
    pixels = images.astype(jnp.float32) / 127.5 - 1
    mean, log_variance = jnp.split(_apply(config, params, pixels, "encode"), 2, axis=-1)
    std = jnp.exp(0.5 * jnp.clip(log_variance, *LOG_VARIANCE_RANGE))
    return jnp.concatenate([mean, std], axis=-1)


def decode_latents(config: VAEConfig, params: Any, latents: jax.Array) -> jax.Array:
    """Latents float32 `[B, s, s, c]`, as the model sees them -> images uint8 `[B, S, S, C]`,
    clipped and rounded. Pure: jit it with any sharding of the batch.

    Raises:
        InputError: the latents have other channels.
    """
    if latents.ndim != 4 or latents.shape[-1] != config.latent_channels:
        raise InputError(
            f"latents have shape {latents.shape}, this VAE expects [B, s, s, "
            f"{config.latent_channels}]; use the VAE that the data set was encoded with"
        )
    latents = (latents.astype(jnp.float32) - config.shift) / config.scale
    pixels = _apply(config, params, latents, "decode")
    return jnp.rint(jnp.clip((pixels + 1) * 127.5, 0, 255)).astype(jnp.uint8)


@dataclass(frozen=True, eq=False)
class SDVAECodec:
    """An AutoencoderKL with its weights. Made by `sd_vae_weights.load_sd_vae`.

    Attributes:
        config: its shape, with scale and shift.
        params: of `AutoencoderKL(config)`; what `encode_images` and `decode_latents` take.
        fingerprint: SHA-256 of the weights' file in hex, as `sha256sum` and the hub show it.
    """

    name: ClassVar[str] = "sd_vae"
    config: VAEConfig
    params: Any
    fingerprint: str

    @property
    def scale(self) -> float:
        return self.config.scale

    @property
    def shift(self) -> float:
        return self.config.shift

    @property
    def downsampling(self) -> int:
        return self.config.downsampling

    def encode(self, images: np.ndarray) -> np.ndarray:
        """Images uint8 `[B, S, S, C]` -> moments float32 `[B, s, s, 2c]`; see `encode_images`."""
        return np.asarray(_jitted_encode(self.config, self.params, images))

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """Latents float32 `[B, s, s, c]` -> images uint8 `[B, S, S, C]`; see `decode_latents`."""
        return np.asarray(_jitted_decode(self.config, self.params, latents))


_jitted_encode = jax.jit(encode_images, static_argnums=0)
_jitted_decode = jax.jit(decode_latents, static_argnums=0)


def _apply(config: VAEConfig, params: Any, x: jax.Array, method: str) -> jax.Array:
    # Accelerators would otherwise multiply float32 in fewer bits.
    with jax.default_matmul_precision("highest"):
        return AutoencoderKL(config).apply({"params": params}, x, method=method)


def _norm(groups: int, name: str) -> nn.GroupNorm:
    # The fast variance, mean of squares minus square of mean, loses digits.
    return nn.GroupNorm(groups, epsilon=GROUP_NORM_EPS, use_fast_variance=False, name=name)


def _mid_block(x: jax.Array, groups: int) -> jax.Array:
    x = ResidualBlock(x.shape[-1], groups, name="mid_block.resnets.0")(x)
    x = SelfAttention(groups, name="mid_block.attentions.0")(x)
    return ResidualBlock(x.shape[-1], groups, name="mid_block.resnets.1")(x)


def _check_images(config: VAEConfig, images: jax.Array) -> None:
    if images.dtype != np.uint8:
        raise InputError(
            f"images are {images.dtype}, expected uint8 in [0, 255]; convert them first"
        )
    size = images.shape[1] if images.ndim == 4 else 0
    square = images.shape[1:] == (size, size, config.in_channels)
    if not square or not size or size % config.downsampling:
        raise InputError(
            f"images have shape {images.shape}, expected [B, S, S, {config.in_channels}] with S a "
            f"multiple of {config.downsampling}; crop or resize them first"
        )
