"""The weight of a method's loss as a function of the step."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from sra_jax.core.errors import InputError


@dataclass(frozen=True)
class WeightSchedule:
    """A constant weight, or one that falls late in training.

    The released code of SRA holds the weight up to and including epoch `constant_epochs`, counted
    from 0, and then divides it by ten every `decade_epochs`. None never does.

    Raises:
      InputError: a value out of its range.
    """

    weight: float = 1.0
    steps_per_epoch: int = 1
    constant_epochs: int = 0
    decade_epochs: int | None = None

    def __post_init__(self):
        if not 0 <= self.weight < math.inf:
            raise InputError(
                f"weight is {self.weight}, expected at least 0 (0: without the method)"
            )
        if self.constant_epochs < 0 or (self.decade_epochs is not None and self.decade_epochs < 1):
            raise InputError(
                f"constant_epochs is {self.constant_epochs} and decade_epochs "
                f"{self.decade_epochs}, expected positive numbers of epochs"
            )

    def __call__(self, step: jax.Array) -> jax.Array:
        if self.decade_epochs is None:
            return jnp.float32(self.weight)
        epochs_since = jnp.maximum(step // self.steps_per_epoch - self.constant_epochs, 0)
        return self.weight * 10.0 ** (-epochs_since.astype(jnp.float32) / self.decade_epochs)
