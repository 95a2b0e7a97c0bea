"""Classifier-free guidance, inside an interval of time, paid for only there."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from sra_jax.conditioning import Condition, Conditioning
from sra_jax.core.errors import InputError
from sra_jax.models import Output


@dataclass(frozen=True)
class Guidance:
    """Guides the first `channels` channels of the output (0: all of the latent's) by
    `scale` in steps that start at a time in [low, high], both included; 1 means none.

    Raises:
      InputError: a scale below 1, or an interval that is reversed or leaves [0, 1].
    """

    scale: float = 1.0
    low: float = 0.0
    high: float = 1.0
    channels: int = 0

    def __post_init__(self):
        if not 1 <= self.scale < math.inf:
            raise InputError(f"guidance is {self.scale}, expected at least 1 (1 is no guidance)")
        if not 0 <= self.low <= self.high <= 1:
            raise InputError(
                f"guidance interval is {self.low},{self.high}, expected LOW,HIGH with "
                "0 <= LOW <= HIGH <= 1 (0 is data, 1 is noise)"
            )
        if self.channels < 0:
            raise InputError(
                f"guidance channels is {self.channels}, expected at least 0 (0 is all)"
            )

    def active(self, time: float) -> bool:
        """Whether a step that starts at `time`, a host float64, is guided."""
        return self.scale != 1 and self.low <= time <= self.high


def make_predictors(
    network: Callable[..., Output],
    guidance: Guidance,
    conditioning: Conditioning,
    condition: Condition,
) -> Callable[[bool], Callable[[jax.Array, jax.Array], jax.Array]]:
    """The predictors of a solver, guided and not.

    Args:
      network: a trunk with its parameters.
      guidance: how guided steps are guided.
      conditioning: describes `condition`.
      condition: arrays [B, ...] of the images to sample.

    Returns:
      From whether a step is guided to a function from x [B, H, W, C] and one time t [] to the
      model's output [B, H, W, outputs * C].
    """

    def plain(x: jax.Array, t: jax.Array) -> jax.Array:
        return network(x, jnp.full(len(x), t), condition).prediction

    def guided(x: jax.Array, t: jax.Array) -> jax.Array:
        both = jax.tree.map(
            lambda a, b: jnp.concatenate([a, b]),
            (x, dict(condition)),
            (x, dict(conditioning.null(len(x)))),
        )
        output = network(both[0], jnp.full(2 * len(x), t), both[1]).prediction
        conditional, unconditional = jnp.split(output, 2)
        # The other channels, DiT's variances among them, are the conditional ones.
        n = min(guidance.channels or x.shape[-1], x.shape[-1])
        difference = conditional[..., :n] - unconditional[..., :n]
        moved = unconditional[..., :n] + guidance.scale * difference
        return jnp.concatenate([moved, conditional[..., n:]], axis=-1)

    return lambda is_guided: guided if is_guided else plain
