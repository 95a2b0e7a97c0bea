"""What a diffusion process owes the rest of the system: all of it, on this page.

Training needs the first four methods below; guidance and probes, whose times are in [0, 1], the
other two. Sampling needs, for each name in `solvers`, what that solver asks of a process
(`sra_jax/sampling/solvers.py`). To add a process, write one file with one class and name it in
`sra_jax/processes/__init__.py`.
"""

from typing import ClassVar, Protocol

import jax


class Process(Protocol):
    """Time runs from data (0) to noise. `x`, `noise` and `x_t` are [B, H, W, C], times are [B]."""

    model_kind: ClassVar[str]
    """The kind of transformer whose output this process reads ("sit" or "dit")."""

    solvers: ClassVar[tuple[str, ...]]
    """Names of the solvers that can sample it."""

    def draw_time(self, key: jax.Array, batch: int) -> jax.Array:
        """Training times [batch]."""

    def teacher_time(self, t: jax.Array, u: jax.Array, gap_max: float) -> jax.Array:
        """The teacher's cleaner times [B], from the student's and u in [0, 1]."""

    def corrupt(self, x: jax.Array, noise: jax.Array, t: jax.Array) -> jax.Array:
        """Noisy latents x_t."""

    def generation_loss(
        self, output: jax.Array, x: jax.Array, noise: jax.Array, t: jax.Array
    ) -> jax.Array:
        """The loss [B] of the model's output [B, H, W, out_channels] at x_t."""

    def normalized_time(self, t: float) -> float:
        """A sampling time on the scale [0, 1] on which guidance intervals are given."""

    def model_time(self, fraction: float) -> float | int:
        """The model's time nearest to `fraction` of the way, in [0, 1], from data to noise."""
