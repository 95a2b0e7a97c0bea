"""The diffusion transformer: SiT and DiT are one trunk that returns its intermediate activations.

The blocks' parameters are stacked on a leading depth axis and run by one `lax.scan`, so neither the
time to compile nor the layout of the parameters depends on depth.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from sra_jax.core.errors import InputError, expect_one_of
from sra_jax.models.layers import (
    MLP,
    Block,
    FinalLayer,
    TimeEmbedding,
    normal_002,
    position_table,
    xavier_uniform,
)

# What each kind predicts per input channel: SiT a velocity; DiT a noise and a variance.
OUTPUTS_PER_CHANNEL = {"sit": 1, "dit": 2}


def _products_saveable(primitive, *_, **__) -> bool:
    """All matrix products, also those inside of cuDNN's attention."""
    return primitive.name.startswith(("dot_general", "dot_product_attention_fwd"))


# What lies between the products is computed again even under "none": writing it to memory and
# reading it back takes longer. Saved, a GELU alone is six arrays of [B, N, 4 D].
REMAT_POLICIES = {
    "none": _products_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}
ATTENTION = ("xla", "cudnn")
DTYPES = ("float32", "bfloat16")

Taps = Sequence[int] | Literal["all"]


@dataclass(frozen=True)
class TransformerConfig:
    """Shape of a diffusion transformer, and how it computes.

    `input_size` is the side of the square latent in pixels, `num_classes` leaves out the null
    class. `dtype` is the dtype of computation (parameters are float32). `remat` says which matrix
    products the backward pass computes again: "none", attention's ("dots": a little more work and
    less memory), or each block's ("full"). `scan_unroll` is how many blocks one turn of the scan
    holds.

    Raises:
      InputError: a field has no valid value; names it.
    """

    kind: str
    input_size: int
    patch_size: int
    in_channels: int
    width: int
    depth: int
    num_heads: int
    num_classes: int
    mlp_ratio: int = 4
    dtype: str = "float32"
    remat: str = "none"
    attention: str = "xla"
    scan_unroll: int = 1

    def __post_init__(self):
        expect_one_of("model kind", self.kind, OUTPUTS_PER_CHANNEL)
        expect_one_of("dtype", self.dtype, DTYPES)
        expect_one_of("remat policy", self.remat, REMAT_POLICIES)
        expect_one_of("attention", self.attention, ATTENTION)
        for name, value in vars(self).items():
            if isinstance(value, int) and value < 1:
                raise InputError(f"model {name} is {value}, expected at least 1")
        if self.input_size % self.patch_size:
            raise InputError(
                f"patch size {self.patch_size} does not divide the input size {self.input_size}; "
                "choose one that does"
            )
        if self.width % self.num_heads or self.width % 4:
            raise InputError(
                f"width {self.width} must be divisible by the {self.num_heads} heads and by 4 "
                "(sine and cosine of two coordinates)"
            )

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.input_size // self.patch_size

    @property
    def num_tokens(self) -> int:
        return self.grid**2

    @property
    def out_channels(self) -> int:
        return self.in_channels * OUTPUTS_PER_CHANNEL[self.kind]


class Output(NamedTuple):
    """`prediction` [B, H, W, out_channels] in float32, or None when stopped early; `features[k]`
    [B, N, D], the output of block k (counted from 1), for every k tapped."""

    prediction: jax.Array | None
    features: dict[int, jax.Array]


class DiffusionTransformer(nn.Module):
    """SiT or DiT (`config.kind`), a pure function of parameters and inputs.

    Label dropout has no place here: labels dropped outside arrive as the null class. On a mesh,
    `batch_sharding` keeps activations split over the batch, so that parameters travel and not they.
    """

    config: TransformerConfig
    batch_sharding: jax.sharding.Sharding | None = None

    def setup(self):
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        values = config.patch_size**2 * config.out_channels
        self.patch_embed = nn.Dense(config.width, kernel_init=xavier_uniform, dtype=dtype)
        self.pos_embed = self.param(
            "pos_embed", lambda _: jnp.asarray(position_table(config.grid, config.width))
        )
        self.time_embed = TimeEmbedding(config.width)
        self.label_embed = nn.Embed(
            config.num_classes + 1, config.width, embedding_init=normal_002, dtype=jnp.float32
        )
        self.block = Block(config.num_heads, config.mlp_ratio, dtype, config.attention, parent=None)
        self.blocks = self.param("blocks", self._init_blocks)
        self.final = FinalLayer(values, dtype)
        self.head = MLP(2 * config.width, config.width, "silu", dtype)

    def __call__(
        self,
        x: jax.Array,
        t: jax.Array,
        labels: jax.Array,
        taps: Taps = (),
        stop_at: int | None = None,
    ) -> Output:
        """Predicts from noisy latents `x` [B, H, W, C], times `t` [B] and `labels` [B].

        `taps` names the blocks (from 1) whose outputs to return; `stop_at=k` computes nothing above
        block k, and predicts nothing.

        Raises:
          InputError: an input of another shape, or a block that does not exist.
        """
        config = self.config
        taps = self._check(x, t, labels, taps, stop_at)
        tokens = self.patch_embed(patchify(x, config.patch_size))
        tokens = tokens + lax.stop_gradient(self.pos_embed).astype(tokens.dtype)
        tokens = self._pin(tokens)
        c = self._pin(self.time_embed(t) + self.label_embed(labels))
        tokens, features = self._run_blocks(tokens, c, taps, stop_at)
        if stop_at is not None:
            return Output(None, features)
        values = self.final(tokens, c)
        return Output(unpatchify(values, config.patch_size).astype(jnp.float32), features)

    def project(self, feature: jax.Array) -> jax.Array:
        """The projection head on a feature [B, N, D] -> [B, N, D] (SRA sec. 3)."""
        return self.head(feature)

    def _pin(self, x: jax.Array) -> jax.Array:
        if self.batch_sharding is None:
            return x
        return lax.with_sharding_constraint(x, self.batch_sharding)

    def _init_blocks(self, key: jax.Array) -> Any:
        width = self.config.width
        tokens, c = jnp.zeros((1, self.config.num_tokens, width)), jnp.zeros((1, width))
        keys = jax.random.split(key, self.config.depth)
        return jax.vmap(lambda k: self.block.init(k, tokens, c)["params"])(keys)

    def _run_blocks(self, x, c, taps, stop_at):
        """Scans the blocks over tokens `x` [B, N, D]; returns the last tokens and those tapped."""
        config = self.config
        last = stop_at or config.depth
        every = len(taps) == last
        policy = REMAT_POLICIES[config.remat]
        run = jax.checkpoint(partial(_run_block, self.block), policy=policy, prevent_cse=False)

        def step(carry, xs):
            x, tapped = carry
            number, params = xs
            if stop_at is not None:  # indexing inside the loop reads the parameters in place
                pick = partial(lax.dynamic_index_in_dim, index=number - 1, keepdims=False)
                params = jax.tree.map(pick, self.blocks)
            x = self._pin(run(params, x, c))
            if every:
                return (x, tapped), x
            # A tap rides in the carry, written once: stacking all outputs would keep them alive.
            return (x, {k: jnp.where(number == k, x, old) for k, old in tapped.items()}), None

        numbers = jnp.arange(1, last + 1)
        xs = (numbers, self.blocks if stop_at is None else None)
        tapped = {} if every else {k: jnp.zeros_like(x) for k in taps if k != last}
        (x, tapped), stacked = lax.scan(step, (x, tapped), xs, unroll=config.scan_unroll)
        if every:
            return x, {k: stacked[k - 1] for k in taps}
        return x, {k: x if k == last else tapped[k] for k in taps}

    def _check(self, x, t, labels, taps, stop_at) -> tuple[int, ...]:
        config = self.config
        size, channels = config.input_size, config.in_channels
        batch = x.shape[0] if x.ndim else 0
        if x.shape != (batch, size, size, channels):
            raise InputError(
                f"model input has shape {x.shape}, expected [B, {size}, {size}, {channels}] "
                "(channels last)"
            )
        if t.shape != (batch,) or labels.shape != (batch,):
            raise InputError(
                f"times {t.shape} and labels {labels.shape} must both have shape ({batch},)"
            )
        if stop_at is not None and not 1 <= stop_at <= config.depth:
            raise InputError(f"stop_at={stop_at}, expected a block from 1 to {config.depth}")
        last = stop_at or config.depth
        if isinstance(taps, str):
            expect_one_of("taps", taps, ["all"])
            return tuple(range(1, last + 1))
        for k in taps:
            if not 1 <= k <= last:
                raise InputError(f"tap at block {k}, expected a block from 1 to {last}")
        return tuple(sorted(set(taps)))


def init_params(model: DiffusionTransformer, key: jax.Array, head: bool) -> dict[str, Any]:
    """Parameters of `model`, with those of the projection head if `head`."""
    config = model.config

    def touch(model, x, t, labels, feature):
        model(x, t, labels)
        if head:
            model.project(feature)

    inputs = (
        jnp.zeros((1, config.input_size, config.input_size, config.in_channels)),
        jnp.zeros(1),
        jnp.zeros(1, jnp.int32),
        jnp.zeros((1, config.num_tokens, config.width)),
    )
    return model.init(key, *inputs, method=touch)["params"]


def patchify(x: jax.Array, patch: int) -> jax.Array:
    """[B, H, W, C] -> [B, N, patch * patch * C], patches in row-major order."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // patch, patch, width // patch, patch, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, -1, patch * patch * channels)


def unpatchify(x: jax.Array, patch: int) -> jax.Array:
    """[B, N, patch * patch * C] -> [B, H, W, C], for a square grid: the inverse of `patchify`."""
    batch, tokens, _ = x.shape
    grid = round(tokens**0.5)
    x = x.reshape(batch, grid, grid, patch, patch, -1).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, grid * patch, grid * patch, -1)


def _run_block(block: Block, params, x: jax.Array, c: jax.Array) -> jax.Array:
    return block.apply({"params": params}, x, c)
