"""SiT's process: data and noise joined by a continuous path; the model predicts its velocity.

Source: SiT (Ma et al. 2024, sec. 2), with t = 0 for data and t = 1 for noise.
"""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from sra_jax.core.errors import expect_one_of
from sra_jax.core.shapes import broadcast_right, per_example_mean

SDE_LAST_TIME = 0.04


@dataclass(frozen=True)
class Interpolant:
    """x_t = alpha(t) x + sigma(t) noise.

    `path` is "linear" (alpha = 1 - t, sigma = t) or "cosine" (alpha = cos(pi t / 2), sigma =
    sin(pi t / 2)); `weighting` draws times "uniform" or "lognormal".

    Raises:
      InputError: an unknown path or weighting.
    """

    path: str = "linear"
    weighting: str = "uniform"

    outputs: ClassVar[int] = 1
    solvers: ClassVar[tuple[str, ...]] = ("sde", "euler", "heun")

    def __post_init__(self):
        expect_one_of("path", self.path, ("linear", "cosine"))
        expect_one_of("time weighting", self.weighting, ("uniform", "lognormal"))

    def alpha_sigma(self, t: jax.Array) -> tuple[jax.Array, jax.Array]:
        """alpha(t) and sigma(t), of the shape of `t`."""
        if self.path == "linear":
            return 1 - t, t
        angle = t * (np.pi / 2)
        return jnp.cos(angle), jnp.sin(angle)

    def derivatives(self, t: jax.Array) -> tuple[jax.Array, jax.Array]:
        """alpha'(t) and sigma'(t), of the shape of `t`."""
        if self.path == "linear":
            return -jnp.ones_like(t), jnp.ones_like(t)
        angle = t * (np.pi / 2)
        return -jnp.sin(angle) * (np.pi / 2), jnp.cos(angle) * (np.pi / 2)

    def draw_time(self, key: jax.Array, batch: int) -> jax.Array:
        if self.weighting == "uniform":
            return jax.random.uniform(key, (batch,))
        return self.lognormal_time(jax.random.normal(key, (batch,)))

    def lognormal_time(self, n: jax.Array) -> jax.Array:
        """Times whose noise-to-signal ratio sigma / alpha is exp(n), for standard normal n [B]."""
        if self.path == "linear":
            return jax.nn.sigmoid(n)
        return (2 / np.pi) * jnp.arctan(jnp.exp(n))

    def earlier(self, t: jax.Array, u: jax.Array, gap_max: float) -> jax.Array:
        return jnp.clip(t - gap_max * u, 0.0, 1.0)

    def corrupt(self, x: jax.Array, noise: jax.Array, t: jax.Array) -> jax.Array:
        alpha, sigma = self.alpha_sigma(broadcast_right(t, x.ndim))
        return alpha * x + sigma * noise

    def generation_loss(
        self, output: jax.Array, x: jax.Array, noise: jax.Array, t: jax.Array
    ) -> jax.Array:
        """Squared error of the velocity, averaged over pixels and channels."""
        d_alpha, d_sigma = self.derivatives(broadcast_right(t, x.ndim))
        return per_example_mean(jnp.square(output - (d_alpha * x + d_sigma * noise)))

    def normalized_time(self, t: float) -> float:
        return t

    def model_time(self, fraction: float) -> float:
        return fraction

    # What the solvers ask for.

    def ode_times(self, steps: int) -> np.ndarray:
        """Times [steps + 1] of an ODE solver, from noise to data, in float64."""
        return np.linspace(1.0, 0.0, steps + 1)

    def sde_times(self, steps: int) -> np.ndarray:
        """Times [steps + 1] of the SDE: even from 1 to 0.04, then 0, in float64."""
        return np.append(np.linspace(1.0, SDE_LAST_TIME, steps), 0.0)

    def velocity(self, output: jax.Array, x: jax.Array, t: jax.Array) -> jax.Array:
        """dx/dt [B, H, W, C] from the model's output at `x` and times `t` [B]."""
        return output

    def score(self, velocity: jax.Array, x: jax.Array, t: jax.Array) -> jax.Array:
        """Gradient of log p_t at `x`, from the velocity (SiT, sec. 2)."""
        alpha, sigma = self.alpha_sigma(broadcast_right(t, x.ndim))
        d_alpha, d_sigma = self.derivatives(broadcast_right(t, x.ndim))
        ratio = alpha / d_alpha
        return (ratio * velocity - x) / (sigma**2 - ratio * d_sigma * sigma)

    def diffusion(self, t: jax.Array) -> jax.Array:
        """The SDE's diffusion coefficient w(t) = 2 t, squared amplitude of its noise."""
        return 2 * t
