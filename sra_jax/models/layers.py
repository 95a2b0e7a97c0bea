"""The parts of a diffusion transformer: embeddings, attention, MLP, adaLN-zero block, heads.

Parameters are float32; `dtype` is what the matrix products compute in. Layer-norm and softmax
statistics are float32 whatever `dtype` is. Initialisation follows DiT (Peebles & Xie 2023, sec. 3).

Named scopes change no number: they tell benchmarks/step_profile.py what an operation belongs to.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

FREQUENCIES = 256
MAX_PERIOD = 10_000
LAYER_NORM_EPS = 1e-6

Counts = tuple[int, ...] | None
"""How many tokens each group has, if tokens lie in groups one after the other."""

xavier_uniform = nn.initializers.xavier_uniform()
normal_002 = nn.initializers.normal(0.02)
zeros = nn.initializers.zeros


@jax.named_scope("layer_norm")
def layer_norm(x: jax.Array) -> jax.Array:
    """Normalises the last axis of `x` [..., D]; no affine parameters; computed in float32."""
    x32 = x.astype(jnp.float32)
    centred = x32 - x32.mean(-1, keepdims=True)
    variance = jnp.mean(jnp.square(centred), -1, keepdims=True)
    return (centred * jax.lax.rsqrt(variance + LAYER_NORM_EPS)).astype(x.dtype)


@jax.named_scope("modulate")
def modulate(x: jax.Array, shift: jax.Array, scale: jax.Array) -> jax.Array:
    """Layer norm of `x` [B, N, D], then shifted and scaled by [B, 1, D] or [B, N, D]."""
    return layer_norm(x) * (1 + scale) + shift


def by_token(values: jax.Array, counts: Counts) -> jax.Array:
    """Vectors of each example [B, D] or group [B, G, D] as arrays that broadcast over tokens.

    The groups have `counts` tokens each, one after the other: [B, 1, D] or [B, N, D].
    """
    if counts is None:
        return values[:, None]
    return jnp.repeat(values, np.array(counts), axis=1, total_repeat_length=sum(counts))


def time_frequencies(t: jax.Array) -> jax.Array:
    """Sinusoidal embedding [..., 256] of times [...], ordered [cos, sin], in float32."""
    half = FREQUENCIES // 2
    frequencies = jnp.exp(-np.log(MAX_PERIOD) * jnp.arange(half, dtype=jnp.float32) / half)
    angles = t.astype(jnp.float32)[..., None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], -1)


class TimeEmbedding(nn.Module):
    """Times [...] -> vectors [..., width]. In float32: bfloat16 blurs neighbouring times."""

    width: int

    @nn.compact
    def __call__(self, t: jax.Array) -> jax.Array:
        h = nn.Dense(self.width, kernel_init=normal_002, name="fc1")(time_frequencies(t))
        return nn.Dense(self.width, kernel_init=normal_002, name="fc2")(nn.silu(h))


class Attention(nn.Module):
    """Multi-head self-attention over tokens [B, N, D], with a fused qkv projection.

    With `counts` tokens attend within their group only.
    """

    num_heads: int
    dtype: jnp.dtype
    implementation: str

    @nn.compact
    def __call__(self, x: jax.Array, counts: Counts = None) -> jax.Array:
        width = x.shape[-1]
        # [3, heads, head width] keeps the heads an axis of their own, which a mesh can shard.
        qkv = nn.DenseGeneral(
            (3, self.num_heads, width // self.num_heads),
            kernel_init=xavier_uniform,
            dtype=self.dtype,
            name="qkv",
        )(x)
        q, k, v = (qkv[:, :, i] for i in range(3))
        # Groups are slices: without a mask, any kernel can compute them.
        ends = np.cumsum(counts or (x.shape[1],))
        parts = [
            jax.nn.dot_product_attention(
                *(a[:, start:end] for a in (q, k, v)), implementation=self.implementation
            )
            for start, end in zip([0, *ends[:-1]], ends, strict=True)
        ]
        h = jnp.concatenate(parts, axis=1) if len(parts) > 1 else parts[0]
        return nn.DenseGeneral(
            width, axis=(-2, -1), kernel_init=xavier_uniform, dtype=self.dtype, name="proj"
        )(h)


class MLP(nn.Module):
    """Linear, activation, linear, over the last axis."""

    hidden: int
    out: int
    activation: str
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        h = nn.Dense(self.hidden, kernel_init=xavier_uniform, dtype=self.dtype, name="fc1")(x)
        with jax.named_scope("activation"):
            h = {"gelu_tanh": nn.gelu, "silu": nn.silu}[self.activation](h)
        return nn.Dense(self.out, kernel_init=xavier_uniform, dtype=self.dtype, name="fc2")(h)


class Block(nn.Module):
    """Transformer block with adaLN-zero conditioning.

    Tokens are [B, N, D], conditioning vectors [B, D], or [B, G, D] for groups of `counts` tokens.
    """

    num_heads: int
    mlp_ratio: int
    dtype: jnp.dtype
    attention: str

    @nn.compact
    def __call__(
        self, x: jax.Array, c: jax.Array, counts: Counts = None, separate: bool = False
    ) -> jax.Array:
        width = x.shape[-1]
        modulation = nn.Dense(
            6 * width, kernel_init=zeros, bias_init=zeros, dtype=self.dtype, name="modulation"
        )(nn.silu(c))
        vectors = [by_token(part, counts) for part in jnp.split(modulation, 6, axis=-1)]
        shift1, scale1, gate1, shift2, scale2, gate2 = vectors
        attention = Attention(self.num_heads, self.dtype, self.attention, name="attention")
        h = attention(modulate(x, shift1, scale1), counts if separate else None)
        x = x + gate1 * h
        mlp = MLP(self.mlp_ratio * width, width, "gelu_tanh", self.dtype, name="mlp")
        return x + gate2 * mlp(modulate(x, shift2, scale2))


class FinalLayer(nn.Module):
    """Tokens [B, N, D], conditioning as of a `Block` -> the values of each patch [B, N, out]."""

    out: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, c: jax.Array, counts: Counts = None) -> jax.Array:
        modulation = nn.Dense(
            2 * x.shape[-1], kernel_init=zeros, bias_init=zeros, dtype=self.dtype, name="modulation"
        )(nn.silu(c))
        shift, scale = (by_token(part, counts) for part in jnp.split(modulation, 2, axis=-1))
        x = modulate(x, shift, scale)
        return nn.Dense(self.out, kernel_init=zeros, dtype=self.dtype, name="linear")(x)
