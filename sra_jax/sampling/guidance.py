"""Classifier-free guidance, inside an interval of time, paid for only there."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

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


def predict(
    apply: Callable[..., Output], x: jax.Array, t: jax.Array, labels: jax.Array
) -> jax.Array:
    """The model's output [B, H, W, out_channels] at `x` [B, H, W, C], one time `t` [] for all."""
    return apply(x, jnp.full(len(x), t), labels).prediction


def predict_guided(
    apply: Callable[..., Output],
    guidance: Guidance,
    null_label: int,
    x: jax.Array,
    t: jax.Array,
    labels: jax.Array,
) -> jax.Array:
    """Like `predict`, guided: unconditional + scale (conditional - unconditional) on the guided
    channels, the conditional output on the others (DiT's variances among them)."""
    both = predict(
        apply,
        jnp.concatenate([x, x]),
        t,
        jnp.concatenate([labels, jnp.full_like(labels, null_label)]),
    )
    conditional, unconditional = jnp.split(both, 2)
    n = min(guidance.channels or x.shape[-1], x.shape[-1])
    difference = conditional[..., :n] - unconditional[..., :n]
    guided = unconditional[..., :n] + guidance.scale * difference
    return jnp.concatenate([guided, conditional[..., n:]], axis=-1)


def make_predictors(
    apply: Callable[..., Output], guidance: Guidance, null_label: int, labels: jax.Array
) -> Callable[[bool], Callable[[jax.Array, jax.Array], jax.Array]]:
    """From whether a step is guided to its predictor (x, t) -> output."""
    plain = partial(predict, apply, labels=labels)
    guided = partial(predict_guided, apply, guidance, null_label, labels=labels)
    return lambda is_guided: guided if is_guided else plain
