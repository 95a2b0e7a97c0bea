"""AdamW under a global-norm clip, as the paper trains with."""

import math
from dataclasses import dataclass

import jax
import optax

from sra_jax.core.errors import InputError, expect_one_of


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW at a constant learning rate; the defaults are the paper's (sec. 4). `moment_dtype` is
    the first moment's; the second needs float32.

    Raises:
      InputError: a value out of its range.
    """

    learning_rate: float = 1e-4
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    moment_dtype: str = "float32"

    def __post_init__(self):
        expect_one_of("optimizer moment_dtype", self.moment_dtype, ("float32", "bfloat16"))
        for name in ("learning_rate", "eps", "clip_norm"):
            if not getattr(self, name) > 0:
                raise InputError(f"optimizer {name} is {getattr(self, name)}, expected above 0")
        for name in ("b1", "b2"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"optimizer {name} is {getattr(self, name)}, expected in [0, 1)")
        if not self.weight_decay >= 0:
            raise InputError(f"optimizer weight_decay is {self.weight_decay}, expected at least 0")
        for name, value in vars(self).items():
            if isinstance(value, float) and not math.isfinite(value):
                raise InputError(f"optimizer {name} is {value}, expected a finite number")


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """Clip, then AdamW. The position table is fixed: it has no gradient, and is not decayed."""

    def decayed(params):
        return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key != "pos_embed", params)

    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            config.learning_rate,
            b1=config.b1,
            b2=config.b2,
            eps=config.eps,
            weight_decay=config.weight_decay,
            mask=decayed,
            mu_dtype=config.moment_dtype,
        ),
    )
