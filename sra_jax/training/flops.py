"""Floating-point operations of a step, counted in the jaxpr of its objective.

Matrix products and convolutions only, two operations a multiply-add. Nothing is computed or
compiled. XLA's own count sees the body of a scan once, so it cannot be used.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sra_jax.core.shapes import FieldSpec
from sra_jax.training.objective import Objective
from sra_jax.training.step import StepConfig, draw_example


class StepFlops(NamedTuple):
    """Operations for one image in one training step."""

    forward: int
    backward: int
    recomputed: int

    @property
    def useful(self) -> int:
        """Operations without those that rematerialisation repeats. MFU counts these."""
        return self.forward + self.backward

    @property
    def total(self) -> int:
        return self.useful + self.recomputed


def step_flops(plain: Objective, rematerialised: Objective) -> StepFlops:
    """The operations of a step.

    Args:
      plain: the objective with a trunk that computes nothing twice.
      rematerialised: the same with the run's rematerialisation.
    """
    params, example = _shapes(plain)
    forward, whole = _forward(plain, params, example), _gradient(plain, params, example)
    again = whole if rematerialised == plain else _gradient(rematerialised, params, example)
    return StepFlops(forward, whole - forward, again - whole)


def count_flops(function: Callable, *arguments: Any) -> int:
    """Operations of the matrix products and convolutions of `function`.

    Arguments may be shapes. The body of a scan counts once a turn.
    """
    return 2 * _count(jax.make_jaxpr(function)(*arguments).jaxpr)


def _forward(objective: Objective, params: Any, example: Any) -> int:
    loss = count_flops(lambda p, e: _loss(objective, p, p, e), params, example)
    return loss // objective.group


def _gradient(objective: Objective, params: Any, example: Any) -> int:
    def gradient(params, ema, example):
        return jax.grad(lambda p: _loss(objective, p, ema, example))(params)

    return count_flops(gradient, params, params, example) // objective.group


def _loss(objective: Objective, params, ema, example) -> jax.Array:
    sizes = objective.trunk.sizes
    state = {method.name: method.init_state(sizes) for method in objective.methods}
    return objective(params, ema, state, example, jnp.int32(0))[0]


def _shapes(objective: Objective) -> tuple[Any, Any]:
    """Shapes of the parameters, and of the smallest example that the methods take."""
    params = jax.eval_shape(lambda: objective.init(0))

    height, width, channels = objective.trunk.sizes.layout.shape
    fields = {"moments": FieldSpec((height, width, 2 * channels), "float32")} | objective.fields()
    batch = {
        name: jax.ShapeDtypeStruct((objective.group, *field.shape), jnp.dtype(field.dtype))
        for name, field in fields.items()
    }
    draw = partial(draw_example, objective, StepConfig(), step=0)
    return params, jax.eval_shape(draw, batch)


def _count(jaxpr: Any) -> int:
    """Multiply-adds of a jaxpr."""
    return sum(_count_equation(equation) for equation in jaxpr.eqns)


def _count_equation(equation: Any) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        left = equation.invars[0].aval.shape
        (contracted, _), _ = params["dimension_numbers"]
        return math.prod(equation.outvars[0].aval.shape) * math.prod(left[i] for i in contracted)
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        output_axis = params["dimension_numbers"].rhs_spec[0]
        return math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) // kernel[output_axis]
    if name in ("while", "cond"):
        raise ValueError(f"cannot count the operations of a {name}: how often it runs is not known")
    inside = sum(_count(inner) for inner in _inner_jaxprs(params))
    return inside * (params["length"] if name == "scan" else 1)


def _inner_jaxprs(params: dict[str, Any]) -> Iterator[Any]:
    for value in params.values():
        if hasattr(value, "jaxpr"):  # a closed one
            yield value.jaxpr
        elif hasattr(value, "eqns"):
            yield value
