"""DiT's process: 1000 discrete steps of noise; the model predicts the noise and a variance.

Sources: DDPM (Ho et al. 2020), Improved DDPM (Nichol & Dhariwal 2021: learned-range variance,
sec. 3.1; respacing, sec. 4), and DiT (Peebles & Xie 2023), which trains on MSE plus the unscaled
variational bound.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sra_jax.core.errors import InputError
from sra_jax.core.shapes import broadcast_right, per_example_mean

TIMESTEPS = 1000
FIRST_BETA, LAST_BETA = 1e-4, 0.02
BIN = 1 / 255  # half the width of a pixel value's bin on [-1, 1]
SMALLEST_PROBABILITY = 1e-12


class Chain(NamedTuple):
    """Constants of a chain of T noising steps, each array [T], float64 on the host.

    `timesteps` are the model's times (a respaced chain keeps some of the 1000); `bar` is the
    cumulative product of 1 - beta; q(x_{t-1} | x_t, x_0) has mean `from_x0` x_0 + `from_xt` x_t and
    log variance `posterior_log_variance` (the first is the second's, as it would be log 0).
    """

    timesteps: np.ndarray
    betas: np.ndarray
    bar: np.ndarray
    bar_previous: np.ndarray
    from_x0: np.ndarray
    from_xt: np.ndarray
    posterior_log_variance: np.ndarray


@dataclass(frozen=True)
class DDPM:
    """The linear schedule of 1000 betas; integer times from 0 (nearly clean) to 999 (noise)."""

    outputs: ClassVar[int] = 2
    solvers: ClassVar[tuple[str, ...]] = ("ddpm", "ddim")

    @cached_property
    def chain(self) -> Chain:
        """All 1000 steps."""
        betas = np.linspace(FIRST_BETA, LAST_BETA, TIMESTEPS)
        return make_chain(np.arange(TIMESTEPS), np.cumprod(1 - betas))

    def draw_time(self, key: jax.Array, batch: int) -> jax.Array:
        return jax.random.randint(key, (batch,), 0, TIMESTEPS)

    def earlier(self, t: jax.Array, u: jax.Array, gap_max: float) -> jax.Array:
        """The gap is an integer below 1000 gap_max; the authors clip the result to [1, 999]."""
        gap = jnp.floor(TIMESTEPS * gap_max * u).astype(t.dtype)
        return jnp.clip(t - gap, 1, TIMESTEPS - 1)

    def corrupt(self, x: jax.Array, noise: jax.Array, t: jax.Array) -> jax.Array:
        bar = self.chain.bar
        return _at(np.sqrt(bar), t) * x + _at(np.sqrt(1 - bar), t) * noise

    def generation_loss(
        self, output: jax.Array, x: jax.Array, noise: jax.Array, t: jax.Array
    ) -> jax.Array:
        """Squared error of the noise plus the variational term, in bits, of a detached mean."""
        mse, vb = self.loss_terms(output, x, noise, t)
        return mse + vb

    def loss_terms(
        self, output: jax.Array, x: jax.Array, noise: jax.Array, t: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Mean squared error [B] and variational term [B] (bits a dimension)."""
        predicted, variance = jnp.split(output, 2, axis=-1)
        mse = per_example_mean(jnp.square(predicted - noise))

        x_t = self.corrupt(x, noise, t)
        chain = self.chain
        x0 = self._x0(jax.lax.stop_gradient(predicted), x_t, t)
        mean, true_mean = (self._posterior_mean(start, x_t, t) for start in (x0, x))
        true_log_variance = _at(chain.posterior_log_variance, t)
        log_variance = learned_range(variance, true_log_variance, _at(np.log(chain.betas), t))
        kl = normal_kl(true_mean, true_log_variance, mean, log_variance)
        nll = -discretized_log_likelihood(x, mean, 0.5 * log_variance)
        first = broadcast_right(t, x.ndim) == 0
        vb = per_example_mean(jnp.where(first, nll, kl)) / np.log(2)
        return mse, vb

    def normalized_time(self, t: float) -> float:
        return t / TIMESTEPS

    def model_time(self, fraction: float) -> int:
        return min(round(fraction * TIMESTEPS), TIMESTEPS - 1)

    def respace(self, steps: int | tuple[int, ...]) -> Chain:
        """The chain that keeps `steps` of the 1000 times, or so many in each equal section."""
        kept = kept_timesteps(steps)
        return make_chain(kept, self.chain.bar[kept])

    def _x0(self, predicted_noise: jax.Array, x_t: jax.Array, t: jax.Array) -> jax.Array:
        bar = self.chain.bar
        return _at(np.sqrt(1 / bar), t) * x_t - _at(np.sqrt(1 / bar - 1), t) * predicted_noise

    def _posterior_mean(self, x0: jax.Array, x_t: jax.Array, t: jax.Array) -> jax.Array:
        return _at(self.chain.from_x0, t) * x0 + _at(self.chain.from_xt, t) * x_t


def make_chain(timesteps: np.ndarray, bar: np.ndarray) -> Chain:
    """The chain through increasing `timesteps` [T], whose signal is sqrt(`bar`) [T]."""
    bar_previous = np.append(1.0, bar[:-1])
    alphas = bar / bar_previous
    betas = 1 - alphas
    variance = betas * (1 - bar_previous) / (1 - bar)
    # A chain of one step has no second variance to borrow: its beta bounds it from above.
    variance[0] = variance[1] if len(variance) > 1 else betas[0]
    return Chain(
        timesteps=timesteps,
        betas=betas,
        bar=bar,
        bar_previous=bar_previous,
        from_x0=betas * np.sqrt(bar_previous) / (1 - bar),
        from_xt=(1 - bar_previous) * np.sqrt(alphas) / (1 - bar),
        posterior_log_variance=np.log(variance),
    )


def kept_timesteps(steps: int | tuple[int, ...]) -> np.ndarray:
    """Times kept by respacing, increasing: spread evenly, both ends included, in each section.

    Raises:
      InputError: a section is asked for more times than it has, or for none.
    """
    counts = (steps,) if isinstance(steps, int) else tuple(steps)
    if not counts:
        raise InputError("respacing names no number of steps, expected one or more")
    kept = []
    for section, count in zip(
        np.array_split(np.arange(TIMESTEPS), len(counts)), counts, strict=True
    ):
        if not 1 <= count <= len(section):
            raise InputError(
                f"respacing {','.join(map(str, counts))} keeps {count} of {len(section)} steps, "
                f"expected 1 to {len(section)}"
            )
        # Summed, not multiplied: where a position falls on a half, the original rounds this sum.
        stride, position = (len(section) - 1) / max(count - 1, 1), 0.0
        for _ in range(count):
            kept.append(section[round(position)])
            position += stride
    return np.array(kept)


def learned_range(value: jax.Array, low: jax.Array, high: jax.Array) -> jax.Array:
    """Log variance between its lower and upper bound; `value` in [-1, 1] (Improved DDPM eq. 15)."""
    fraction = (value + 1) / 2
    return fraction * high + (1 - fraction) * low


def normal_kl(
    mean1: jax.Array, log_variance1: jax.Array, mean2: jax.Array, log_variance2: jax.Array
) -> jax.Array:
    """KL divergence, in nats and elementwise, of the first normal from the second."""
    return 0.5 * (
        log_variance2
        - log_variance1
        - 1
        + jnp.exp(log_variance1 - log_variance2)
        + jnp.square(mean1 - mean2) * jnp.exp(-log_variance2)
    )


def discretized_log_likelihood(x: jax.Array, mean: jax.Array, log_scale: jax.Array) -> jax.Array:
    """Log probability, in nats, that a normal falls into the pixel bin around `x` in [-1, 1].

    The normal CDF is its tanh approximation: DiT's loss is defined with it.
    """
    centred, inverse = x - mean, jnp.exp(-log_scale)
    upper = normal_cdf(inverse * (centred + BIN))
    lower = normal_cdf(inverse * (centred - BIN))
    inside = jnp.where(x > 0.999, 1 - lower, upper - lower)
    return jnp.log(jnp.maximum(jnp.where(x < -0.999, upper, inside), SMALLEST_PROBABILITY))


def normal_cdf(x: jax.Array) -> jax.Array:
    """Standard normal CDF, tanh approximation."""
    return 0.5 * (1 + jnp.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def _at(table: np.ndarray, t: jax.Array) -> jax.Array:
    return broadcast_right(jnp.asarray(table, jnp.float32)[t], 4)
