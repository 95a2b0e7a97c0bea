"""The interface of a diffusion process.

Training needs the first four methods below. Guidance and probes, whose times are in [0, 1], need
the other two. Sampling needs, for each name in `solvers`, what that solver asks of a process
(`sra_jax/sampling/solvers.py`). To add a process, write one file with one class and name it in
`sra_jax/processes/__init__.py`.
"""

from typing import ClassVar, Protocol

import jax


class Process(Protocol):
    """Time runs from data (0) to noise. `x`, `noise` and `x_t` are [B, H, W, C].

    Times are [B], or [B, H, W, 1] if they differ within a latent.
    """

    outputs: ClassVar[int]
    """Values that the model predicts for each latent channel: 1, or 2 with a learned variance."""

    solvers: ClassVar[tuple[str, ...]]
    """Names of the solvers that can sample it."""

    def draw_time(self, key: jax.Array, batch: int) -> jax.Array:
        """Training times [batch]."""

    def earlier(self, t: jax.Array, u: jax.Array, gap_max: float) -> jax.Array:
        """Cleaner times, earlier than `t` by the share `u` in [0, 1] of the largest gap.

        `gap_max` is a fraction of the whole time.
        """

    def corrupt(self, x: jax.Array, noise: jax.Array, t: jax.Array) -> jax.Array:
        """Noisy latents x_t."""

    def generation_loss(
        self, output: jax.Array, x: jax.Array, noise: jax.Array, t: jax.Array
    ) -> jax.Array:
        """The loss [B] of the model's output [B, H, W, outputs * C] at x_t."""

    def normalized_time(self, t: float) -> float:
        """A sampling time on the scale [0, 1] on which guidance intervals are given."""

    def model_time(self, fraction: float) -> float | int:
        """The model's time nearest to `fraction` of the way, in [0, 1], from data to noise."""
