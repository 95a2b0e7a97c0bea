"""Guidance acts, and costs a batch of twice the size, in its interval alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sra_jax.conditioning import ClassLabels
from sra_jax.core.errors import InputError
from sra_jax.models import Output
from sra_jax.processes import DDPM, Interpolant
from sra_jax.sampling.guidance import Guidance, make_predictors
from sra_jax.sampling.solvers import make_steps, solve

UNGUIDED, LABELS = Guidance(), ClassLabels(10)


def test_interval_is_inclusive_at_both_ends_in_float64():
    guidance = Guidance(1.5, 0.1, 0.7)
    assert guidance.active(0.1) and guidance.active(0.7) and guidance.active(0.4)
    assert not guidance.active(np.nextafter(0.1, 0)) and not guidance.active(np.nextafter(0.7, 1))
    assert Guidance(1.5, 0.3, 0.3).active(0.3)
    assert not Guidance(1.0, 0.0, 1.0).active(0.5)


class Recorder:
    """A model that notes the batch of each trace; conditional and unconditional parts differ."""

    def __init__(self, channels=1):
        self.channels, self.batches = channels, []

    def __call__(self, x, t, condition):
        self.batches.append(len(x))
        value = jnp.where(condition["labels"] == 10, 1.0, 3.0)[:, None, None, None]
        return Output(jnp.broadcast_to(value, (*x.shape[:3], self.channels)), {})


def trace(process, solver, steps, guidance, channels=1):
    """Batches seen, in order, and lengths of the scans."""
    model, condition = Recorder(channels), {"labels": jnp.zeros(3, jnp.int32)}
    predictors = make_predictors(model, guidance, LABELS, condition)

    def function(z):
        steps_ = make_steps(process, solver, steps)
        return solve(process, steps_, predictors, guidance, lambda i: jnp.zeros_like(z), z)

    jaxpr = jax.make_jaxpr(function)(jnp.zeros((3, 2, 2, 1))).jaxpr
    scans = [equation for equation in jaxpr.eqns if equation.primitive.name == "scan"]
    return model.batches, [equation.params["length"] for equation in scans]


@pytest.mark.parametrize("factor", [1, 10])
def test_the_batch_doubles_only_inside_the_interval(factor):
    """Euler's times are k / steps; 0.75 and 0.25 are exact. Whatever the number of steps, what is
    traced (and so compiled) is one scan a segment."""
    steps = 8 * factor
    batches, lengths = trace(Interpolant(), "euler", steps, Guidance(2.0, 0.25, 0.75))
    assert batches == [3, 6, 3]
    assert lengths == [2 * factor, 4 * factor + 1, 2 * factor - 1]


@pytest.mark.parametrize(
    ("process", "solver", "guidance", "batches", "lengths"),
    [
        (Interpolant(), "euler", UNGUIDED, [3], [40]),
        (Interpolant(), "euler", Guidance(2.0), [6], [40]),
        (Interpolant(), "euler", Guidance(2.0, 0.0, 0.5), [3, 6], [20, 20]),
        # Heun's corrector follows its own step; the last step is Euler's.
        (Interpolant(), "heun", UNGUIDED, [3, 3, 3], [39, 1]),
        (Interpolant(), "heun", Guidance(2.0, 0.5, 1.0), [6, 6, 3, 3, 3], [21, 18, 1]),
        # The last of the SDE's steps has no noise.
        (Interpolant(), "sde", UNGUIDED, [3, 3], [39, 1]),
        (Interpolant(), "sde", Guidance(2.0, 0.0, 0.5), [3, 6, 6], [21, 18, 1]),
        (DDPM(), "ddpm", UNGUIDED, [3, 3], [39, 1]),
        (DDPM(), "ddim", UNGUIDED, [3], [40]),
        # Times of 40 kept steps are 25.6 apart: 20 of them start at or above 0.5.
        (DDPM(), "ddim", Guidance(2.0, 0.0, 0.5), [3, 6], [20, 20]),
    ],
)
def test_scans_are_one_a_segment(process, solver, guidance, batches, lengths):
    channels = 2 if isinstance(process, DDPM) else 1
    assert trace(process, solver, 40, guidance, channels) == (batches, lengths)


def test_heun_follows_the_test_on_its_steps_start():
    """Guided between 0.5 and 1, two steps: the first guided twice, the second (from 0.5, Euler)
    too; guided only at 1, the corrector at 0.5 is guided all the same."""
    z, model = jnp.zeros((3, 2, 2, 1)), Recorder()
    guided, conditional = 1 + 2.0 * (3 - 1), 3.0
    for low, expected in ((0.5, -guided), (0.9, -(guided + conditional) / 2)):
        guidance = Guidance(2.0, low, 1.0)
        condition = {"labels": jnp.zeros(3, jnp.int32)}
        predictors = make_predictors(model, guidance, LABELS, condition)
        steps = make_steps(Interpolant(), "heun", 2)
        out = solve(Interpolant(), steps, predictors, guidance, lambda i: z, z)
        np.testing.assert_allclose(out, expected, rtol=1e-6)


def test_guidance_acts_on_its_channels():
    model, z = Recorder(8), jnp.zeros((3, 2, 2, 4))
    condition = {"labels": jnp.array([1, 2, 10])}
    for channels, guided in ((0, 4), (3, 3), (1, 1)):
        guidance = Guidance(1.5, channels=channels)
        predict = make_predictors(model, guidance, LABELS, condition)(True)
        out = np.asarray(predict(z, jnp.float32(0.5)))
        assert out.shape == (3, 2, 2, 8)
        np.testing.assert_allclose(out[:2, ..., :guided], 1 + 1.5 * 2)
        np.testing.assert_allclose(out[:2, ..., guided:], 3)
        np.testing.assert_allclose(out[2], 1)  # nothing to guide away from


def test_a_scale_of_one_costs_nothing():
    assert trace(Interpolant(), "heun", 5, Guidance(1.0, 0.2, 0.8))[0] == [3, 3, 3]


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"scale": 0.5}, "guidance is 0.5"),
        ({"scale": float("nan")}, "guidance is nan"),
        ({"scale": float("inf")}, "guidance is inf"),
        ({"low": 0.7, "high": 0.3}, "0.7,0.3"),
        ({"high": 1.5}, "0.0,1.5"),
        ({"low": -0.1}, "-0.1,1.0"),
        ({"low": float("nan")}, "nan,1.0"),
        ({"channels": -1}, "channels is -1"),
    ],
    ids=str,
)
def test_bad_guidance_is_refused_in_one_line(options, word):
    with pytest.raises(InputError) as error:
        Guidance(**({"scale": 2.0} | options))
    assert word in str(error.value) and "\n" not in str(error.value)
