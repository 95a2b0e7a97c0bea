"""The weight of a method's loss, step by step."""

import jax.numpy as jnp
import numpy as np
import pytest

from sra_jax.core.errors import InputError
from sra_jax.methods.schedule import WeightSchedule


@pytest.mark.parametrize(
    ("weight", "constant", "decade"), [(0.2, 149, 1000), (0.2, 99, 800), (0.04, 149, 1000)]
)
def test_released_schedule(weight, constant, decade):
    steps = 5004
    schedule = WeightSchedule(weight, steps, constant, decade)

    def at(step):
        return float(schedule(jnp.int32(step)))

    held = [0, steps, constant * steps, (constant + 1) * steps - 1]
    np.testing.assert_allclose([at(step) for step in held], weight, rtol=1e-6)
    for epoch in (constant + 1, constant + 100, constant + decade, constant + 2 * decade):
        expected = weight * 10 ** (-(epoch - constant) / decade)
        np.testing.assert_allclose(at(epoch * steps), expected, rtol=1e-6)
        np.testing.assert_allclose(at((epoch + 1) * steps - 1), expected, rtol=1e-6)
    np.testing.assert_allclose(at((constant + decade) * steps), weight / 10, rtol=1e-6)


def test_paper_schedule_is_constant():
    schedule = WeightSchedule(0.2)
    np.testing.assert_allclose([schedule(jnp.int32(s)) for s in (0, 10, 10**9)], 0.2, rtol=1e-7)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"weight": -0.2}, "weight is -0.2"),
        ({"weight": float("nan")}, "weight is nan"),
        ({"weight": float("inf")}, "weight is inf"),
        ({"constant_epochs": -1}, "constant_epochs is -1"),
        ({"decade_epochs": 0}, "decade_epochs 0"),
    ],
    ids=str,
)
def test_bad_schedule_is_refused_in_one_line(options, word):
    with pytest.raises(InputError) as error:
        WeightSchedule(**options)
    assert word in str(error.value) and "\n" not in str(error.value)
