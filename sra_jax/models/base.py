"""The interface of a trunk: what a forward pass takes and returns."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from sra_jax.conditioning import Condition
from sra_jax.distributed.sharding import Rules
from sra_jax.models.layout import LatentLayout

Params = Mapping[str, Any]


class Route(NamedTuple):
    """Only some tokens run blocks `first` to `last`; the others pass these blocks unchanged.

    Attributes:
      first, last: blocks, both included.
      keep: the tokens that run them, int32 [B, K]; K is the same for every example.
    """

    first: int
    last: int
    keep: jax.Array


class Groups(NamedTuple):
    """Tokens in groups, each with a time of its own.

    Attributes:
      ids: the group of every token, int32 [B, N], from 0 on.
      counts: how many tokens each of the G groups has, in every example.
      separate: whether tokens attend within their group only.
    """

    ids: jax.Array
    counts: tuple[int, ...]
    separate: bool


@dataclass(frozen=True)
class Pass:
    """How one forward pass runs; never what the model is. Blocks count from 1.

    Attributes:
      taps: blocks whose outputs to return, or "all".
      stop_at: the last block to compute; there is no prediction then.
      route: tokens that pass some blocks by.
      groups: the times are [B, G] then, one for each group.
    """

    taps: tuple[int, ...] | Literal["all"] = ()
    stop_at: int | None = None
    route: Route | None = None
    groups: Groups | None = None


WHOLE = Pass()  # all blocks, no taps


class Output(NamedTuple):
    """The result of a forward pass.

    Attributes:
      prediction: [B, H, W, outputs * C] in float32, or None if the pass stopped early.
      features: the output [B, N, D] of every block that was tapped.
    """

    prediction: jax.Array | None
    features: dict[int, jax.Array]


class Sizes(NamedTuple):
    """What a method may need to know of a trunk to make its own parameters.

    Attributes:
      layout: of the latents; `layout.tokens` is N.
      width: of a token, D.
      depth: number of blocks.
      dtype: of the matrix products.
    """

    layout: LatentLayout
    width: int
    depth: int
    dtype: jnp.dtype


class Trunk(Protocol):
    """A network from noisy latents, times and a condition to a prediction and features."""

    supports: ClassVar[frozenset[str]]
    """Of the fields of `Pass`, "route" and "groups", those that it can run."""

    rules: ClassVar[Rules]
    """Sharding rules: patterns that a parameter's path ends with, the first match decides."""

    @property
    def sizes(self) -> Sizes:
        """The sizes that methods ask for."""

    def init(self, key: jax.Array) -> Params:
        """First parameters, float32."""

    def apply(
        self,
        params: Params,
        x_t: jax.Array,
        t: jax.Array,
        condition: Condition,
        how: Pass = WHOLE,
    ) -> Output:
        """Runs the network on `x_t` [B, H, W, C] at times `t`, [B] or by group [B, G]."""
