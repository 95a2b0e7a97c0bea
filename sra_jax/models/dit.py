"""The diffusion transformer: SiT and DiT are one trunk that returns its intermediate activations.

The blocks' parameters are stacked on a leading depth axis and run by one `lax.scan`, so neither the
time to compile nor the layout of the parameters depends on depth.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from sra_jax.conditioning import Condition, Conditioning
from sra_jax.core.errors import InputError, expect_one_of
from sra_jax.distributed.sharding import Rules
from sra_jax.models.base import WHOLE, Output, Params, Pass, Sizes
from sra_jax.models.layers import Block, FinalLayer, TimeEmbedding, xavier_uniform
from sra_jax.models.layout import LatentLayout

# One entry an axis of the array; the blocks' arrays begin with the depth. The first match decides.
RULES: Rules = (
    (r"blocks/attention/qkv/kernel", PartitionSpec(None, "fsdp", None, "tensor", None)),
    (r"blocks/attention/qkv/bias", PartitionSpec(None, None, "tensor", None)),
    (r"blocks/attention/proj/kernel", PartitionSpec(None, "tensor", None, "fsdp")),
    (r"blocks/mlp/fc1/kernel", PartitionSpec(None, "fsdp", "tensor")),
    (r"blocks/mlp/fc1/bias", PartitionSpec(None, "tensor")),
    (r"blocks/mlp/fc2/kernel", PartitionSpec(None, "tensor", "fsdp")),
    (r"blocks/modulation/kernel", PartitionSpec(None, "fsdp", None)),
    (r"time_embed/fc[12]/kernel", PartitionSpec("fsdp", None)),
    (r"final/modulation/kernel", PartitionSpec("fsdp", None)),
    # Too small to be worth a gather: copied to every device.
    (r"label_embed/embedding|pos_embed", PartitionSpec()),
    (r"patch_embed/(kernel|bias)|final/linear/(kernel|bias)", PartitionSpec()),
    (r"(proj|fc2|fc1|modulation)/bias", PartitionSpec()),
)


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


@dataclass(frozen=True)
class DiTConfig:
    """Shape of a SiT or DiT, and how it computes.

    Attributes:
      layout: of the latents.
      conditioning: of what the model is told besides time.
      outputs: predicted values for each latent channel: 1, or 2 with a learned variance.
      width: of a token; the MLP is `mlp_ratio` times as wide.
      depth: number of blocks.
      dtype: of the matrix products; parameters are float32.
      remat: which matrix products the backward pass computes again: "none", those of attention
        ("dots": a little more work and less memory), or each block's ("full").
      attention: its implementation.
      scan_unroll: blocks in one turn of the scan.

    Raises:
      InputError: a field has no valid value; names it.
    """

    layout: LatentLayout
    conditioning: Conditioning
    outputs: int
    width: int
    depth: int
    num_heads: int
    mlp_ratio: int = 4
    dtype: str = "float32"
    remat: str = "none"
    attention: str = "xla"
    scan_unroll: int = 1

    def __post_init__(self):
        expect_one_of("dtype", self.dtype, DTYPES)
        expect_one_of("remat policy", self.remat, REMAT_POLICIES)
        expect_one_of("attention", self.attention, ATTENTION)
        for name, value in vars(self).items():
            if isinstance(value, int) and value < 1:
                raise InputError(f"model {name} is {value}, expected at least 1")
        if self.width % self.num_heads or self.width % 4:
            raise InputError(
                f"width {self.width} must be divisible by the {self.num_heads} heads and by 4 "
                "(sine and cosine of two coordinates)"
            )


@dataclass(frozen=True)
class DiT:
    """SiT or DiT as a trunk: pure functions of parameters and inputs.

    On a mesh, `batch_sharding` keeps activations split over the batch, so that XLA moves parameters
    between devices and not activations.
    """

    config: DiTConfig
    batch_sharding: jax.sharding.Sharding | None = None
    supports: ClassVar[frozenset[str]] = frozenset({"route", "groups"})
    rules: ClassVar[Rules] = RULES

    @property
    def sizes(self) -> Sizes:
        config = self.config
        return Sizes(config.layout, config.width, config.depth, jnp.dtype(config.dtype))

    def init(self, key: jax.Array) -> Params:
        """First parameters (DiT, sec. 3), float32."""
        layout, conditioning = self.config.layout, self.config.conditioning
        inputs = jnp.zeros((1, *layout.shape)), jnp.zeros(1), conditioning.null(1)
        return self._network.init(key, *inputs, WHOLE)["params"]

    def apply(
        self,
        params: Params,
        x_t: jax.Array,
        t: jax.Array,
        condition: Condition,
        how: Pass = WHOLE,
    ) -> Output:
        """Predicts from noisy latents `x_t` [B, H, W, C], times `t` [B] and a condition.

        With groups, times are [B, G].

        Raises:
          InputError: an input of another shape, or a pass that cannot run.
        """
        how = self._check(x_t, t, condition, how)
        return self._network.apply({"params": params}, x_t, t, condition, how)

    @property
    def _network(self) -> "DiffusionTransformer":
        return DiffusionTransformer(self.config, self.batch_sharding)

    def _check(self, x: jax.Array, t: jax.Array, condition: Condition, how: Pass) -> Pass:
        """The pass with its taps sorted. Raises InputError if it cannot run on these inputs."""
        height, width, channels = self.config.layout.shape
        batch = x.shape[0] if x.ndim else 0
        if x.shape != (batch, height, width, channels):
            raise InputError(
                f"model input has shape {x.shape}, expected [B, {height}, {width}, {channels}] "
                "(channels last)"
            )
        times = (batch,) if how.groups is None else (batch, len(how.groups.counts))
        if t.shape != times:
            raise InputError(f"times have shape {t.shape}, expected {times}")
        for name, field in self.config.conditioning.fields().items():
            found, expected = condition[name].shape, (batch, *field.shape)
            if found != expected:
                raise InputError(f"condition {name} has shape {found}, expected {expected}")
        depth = self.config.depth
        if how.stop_at is not None and not 1 <= how.stop_at <= depth:
            raise InputError(f"stop_at={how.stop_at}, expected a block from 1 to {depth}")
        last = how.stop_at or depth
        if isinstance(how.taps, str):
            expect_one_of("taps", how.taps, ["all"])
            how = replace(how, taps=tuple(range(1, last + 1)))
        for k in how.taps:
            if not 1 <= k <= last:
                raise InputError(f"tap at block {k}, expected a block from 1 to {last}")
        self._check_route(how, last)
        if how.groups is not None and sum(how.groups.counts) != self.config.layout.tokens:
            raise InputError(
                f"groups of {how.groups.counts} tokens, expected {self.config.layout.tokens} in all"
            )
        return replace(how, taps=tuple(sorted(set(how.taps))))

    def _check_route(self, how: Pass, depth: int) -> None:
        if how.route is None:
            return
        first, last, _ = how.route
        if how.groups is not None:
            raise InputError("a route and groups do not go together; leave one of them out")
        if not 1 <= first <= last <= depth:
            raise InputError(f"route from block {first} to {last}, expected within 1 to {depth}")
        if routed := [k for k in how.taps if first <= k < last]:
            raise InputError(
                f"blocks {routed} lie in the route {first} to {last}, so they have no feature for "
                "every token; tap others"
            )


class DiffusionTransformer(nn.Module):
    """The network of `DiT`, as a Flax module."""

    config: DiTConfig
    batch_sharding: jax.sharding.Sharding | None = None

    def setup(self):
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        layout = config.layout
        values = layout.patch_values * layout.channels * config.outputs
        self.patch_embed = nn.Dense(config.width, kernel_init=xavier_uniform, dtype=dtype)
        self.pos_embed = self.param(
            "pos_embed", lambda _: jnp.asarray(layout.position_table(config.width))
        )
        self.time_embed = TimeEmbedding(config.width)
        self.label_embed = config.conditioning.embedding(config.width)
        self.block = Block(config.num_heads, config.mlp_ratio, dtype, config.attention, parent=None)
        self.blocks = self.param("blocks", self._init_blocks)
        self.final = FinalLayer(values, dtype)

    def __call__(self, x: jax.Array, t: jax.Array, condition: Condition, how: Pass) -> Output:
        """See `DiT.apply`; the taps of `how` are sorted."""
        layout = self.config.layout
        tokens = self.patch_embed(layout.patchify(x))
        tokens = tokens + lax.stop_gradient(self.pos_embed).astype(tokens.dtype)
        tokens = self._pin(tokens)
        labels = self.label_embed(condition)
        if how.groups is None:
            c, order, counts, separate = self.time_embed(t) + labels, None, None, False
        else:  # tokens of a group lie together inside the blocks
            c, counts = self.time_embed(t) + labels[:, None], how.groups.counts
            order, separate = jnp.argsort(how.groups.ids, axis=1), how.groups.separate
            tokens = _take(tokens, order)
        c = self._pin(c)
        tokens, features = self._run_blocks(tokens, c, how, counts, separate)
        if order is not None:
            back = jnp.argsort(order, axis=1)
            features = {k: _take(feature, back) for k, feature in features.items()}
        if how.stop_at is not None:
            return Output(None, features)
        values = self.final(tokens, c, counts)
        values = values if order is None else _take(values, back)
        return Output(layout.unpatchify(values).astype(jnp.float32), features)

    def _pin(self, x: jax.Array) -> jax.Array:
        if self.batch_sharding is None:
            return x
        return lax.with_sharding_constraint(x, self.batch_sharding)

    def _init_blocks(self, key: jax.Array) -> Any:
        width = self.config.width
        tokens, c = jnp.zeros((1, self.config.layout.tokens, width)), jnp.zeros((1, width))
        keys = jax.random.split(key, self.config.depth)
        return jax.vmap(lambda k: self.block.init(k, tokens, c)["params"])(keys)

    def _run_blocks(self, x, c, how, counts, separate):
        """Runs the blocks on tokens `x` [B, N, D]; returns the last tokens and those tapped."""
        last = how.stop_at or self.config.depth
        run = partial(_run_block, self.block, counts=counts, separate=separate)
        policy = REMAT_POLICIES[self.config.remat]
        run = jax.checkpoint(run, policy=policy, prevent_cse=False)
        if how.route is None:
            return self._scan(run, x, c, how.taps, 1, last, by_index=how.stop_at is not None)

        # Before, in and after the route; inside, the array holds the kept tokens alone.
        first, end, keep = how.route
        x, before = self._scan(run, x, c, how.taps, 1, first - 1)
        inside, _ = self._scan(run, self._pin(_take(x, keep)), c, (), first, end)
        # A gather puts the tokens back: slot is 1 + the place in `keep`, or 0 for tokens not there.
        rows, places = jnp.arange(len(x))[:, None], jnp.arange(1, keep.shape[1] + 1)
        slot = jnp.zeros(x.shape[:2], jnp.int32).at[rows, keep].set(places)
        x = self._pin(jnp.where(slot[..., None] > 0, _take(inside, jnp.maximum(slot - 1, 0)), x))
        at_end = {end: x} if end in how.taps else {}
        x, after = self._scan(run, x, c, how.taps, end + 1, last)
        return x, before | at_end | after

    def _scan(self, run, x, c, taps, first, last, by_index=False):
        """Scans blocks `first` to `last`; returns the last tokens, and the taps among them.

        A pass that stops early needs no gradient: `by_index` reads its parameters in place, inside
        the loop. Otherwise the loop runs over a slice of them, which costs less with a gradient.
        """
        taps = [k for k in taps if first <= k <= last]
        if first > last:
            return x, {}
        every = len(taps) == last - first + 1

        def step(carry, xs):
            x, tapped = carry
            number, params = xs
            if by_index:
                pick = partial(lax.dynamic_index_in_dim, index=number - 1, keepdims=False)
                params = jax.tree.map(pick, self.blocks)
            x = self._pin(run(params, x, c))
            if every:
                return (x, tapped), x
            # A tap rides in the carry, written once: stacking all outputs would keep them alive.
            return (x, {k: jnp.where(number == k, x, old) for k, old in tapped.items()}), None

        blocks = None if by_index else self.blocks
        if blocks is not None and (first, last) != (1, self.config.depth):
            blocks = jax.tree.map(lambda p: p[first - 1 : last], blocks)
        xs = (jnp.arange(first, last + 1), blocks)
        tapped = {} if every else {k: jnp.zeros_like(x) for k in taps if k != last}
        (x, tapped), stacked = lax.scan(step, (x, tapped), xs, unroll=self.config.scan_unroll)
        if every:
            return x, {k: stacked[k - first] for k in taps}
        return x, {k: x if k == last else tapped[k] for k in taps}


def _take(tokens: jax.Array, index: jax.Array) -> jax.Array:
    """The tokens [B, K, D] of [B, N, D] at `index` [B, K]."""
    return jnp.take_along_axis(tokens, index[..., None], axis=1)


def _run_block(block: Block, params, x: jax.Array, c: jax.Array, counts, separate) -> jax.Array:
    return block.apply({"params": params}, x, c, counts, separate)
