"""The continuous paths against the authors' numbers, autodiff, and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import LOSSES, ROUNDING, relative_error
from scipy import stats

from sra_jax.core.errors import InputError
from sra_jax.processes import Interpolant

PATHS = ["linear", "cosine"]
WEIGHTINGS = ["uniform", "lognormal"]


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("path", PATHS)
def test_generation_loss_is_golden(sit, sit_model, path, weighting):
    process = Interpolant(path, weighting)
    t = sit.jax("loss/u_time")
    if weighting == "lognormal":
        t = process.lognormal_time(sit.jax("loss/normal_time"))
    x, noise = sit.images("loss/latents"), sit.images("loss/noise")
    labels = sit.jax("loss/labels", jnp.int32)
    out = sit_model(sit.params("student"), process.corrupt(x, noise, t), t, labels)
    loss = process.generation_loss(out.prediction, x, noise, t)
    assert relative_error(loss, sit[f"loss/{path}/{weighting}/generation"]) < LOSSES


@pytest.mark.parametrize("path", PATHS)
def test_ends_are_data_and_noise(path):
    rng = np.random.default_rng(0)
    x, noise = rng.normal(size=(2, 2, 3, 3, 1)).astype(np.float32)
    process = Interpolant(path)
    np.testing.assert_allclose(process.corrupt(x, noise, jnp.zeros(2)), x, atol=1e-7)
    np.testing.assert_allclose(process.corrupt(x, noise, jnp.ones(2)), noise, atol=1e-6)


@pytest.mark.parametrize(
    ("path", "alpha", "sigma"),
    [("linear", 0.75, 0.25), ("cosine", np.cos(np.pi / 8), np.sin(np.pi / 8))],
)
def test_each_example_has_its_own_time(path, alpha, sigma):
    x, noise = np.full((2, 1, 1, 1), 3.0), np.full((2, 1, 1, 1), 5.0)
    x_t = Interpolant(path).corrupt(x, noise, jnp.array([0.0, 0.25]))
    np.testing.assert_allclose(np.ravel(x_t), [3, 3 * alpha + 5 * sigma], rtol=1e-6)


@pytest.mark.parametrize("path", PATHS)
def test_derivatives_are_those_of_autodiff(path):
    process = Interpolant(path)
    t = jnp.linspace(0, 1, 41)
    for actual, expected in zip(
        process.derivatives(t), jax.vmap(jax.jacfwd(process.alpha_sigma))(t), strict=True
    ):
        np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("path", PATHS)
def test_velocity_target_is_the_paths_derivative(path):
    """A prediction that is the time derivative of x_t, by autodiff, has no loss."""
    rng = np.random.default_rng(1)
    x, noise = rng.normal(size=(2, 5, 4, 4, 2)).astype(np.float32)
    process, t = Interpolant(path), jnp.linspace(0.0, 1.0, 5)
    _, velocity = jax.jvp(lambda t: process.corrupt(x, noise, t), (t,), (jnp.ones(5),))
    np.testing.assert_allclose(process.generation_loss(velocity, x, noise, t), 0, atol=1e-11)
    np.testing.assert_allclose(process.generation_loss(velocity + 2, x, noise, t), 4, rtol=1e-5)


@pytest.mark.parametrize("path", PATHS)
def test_score_of_gaussian_data(path):
    """Data N(mean, std^2): x_t is N(alpha mean, alpha^2 std^2 + sigma^2), its score is linear."""
    mean, std = 0.7, 0.5
    process, t = Interpolant(path), np.linspace(0.05, 0.95, 19)
    x_t = np.random.default_rng(2).normal(size=(19, 3, 3, 1))
    alpha, sigma = (
        (1 - t, t) if path == "linear" else (np.cos(t * np.pi / 2), np.sin(t * np.pi / 2))
    )
    d_alpha, d_sigma = (-1, 1) if path == "linear" else (-sigma * np.pi / 2, alpha * np.pi / 2)
    column = (slice(None), None, None, None)
    variance = alpha**2 * std**2 + sigma**2
    score = -(x_t - (alpha * mean)[column]) / variance[column]
    x0 = mean - (alpha * std**2)[column] * score
    noise = -sigma[column] * score
    d_alpha, d_sigma = (np.broadcast_to(d, t.shape)[column] for d in (d_alpha, d_sigma))
    velocity = d_alpha * x0 + d_sigma * noise
    arguments = (jnp.asarray(a, jnp.float32) for a in (velocity, x_t, t))
    assert relative_error(process.score(*arguments), score) < 10 * ROUNDING


@pytest.mark.parametrize("path", PATHS)
def test_lognormal_time_has_a_lognormal_noise_to_signal_ratio(path):
    process, n = Interpolant(path, "lognormal"), np.linspace(-4, 4, 33)
    alpha, sigma = process.alpha_sigma(process.lognormal_time(jnp.asarray(n, jnp.float32)))
    np.testing.assert_allclose(sigma / alpha, np.exp(n), rtol=3e-5)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("path", PATHS)
def test_drawn_times_follow_their_law(path, weighting):
    t = Interpolant(path, weighting).draw_time(jax.random.key(0), 20_000)
    assert t.shape == (20_000,) and t.min() >= 0 and t.max() <= 1
    law = stats.uniform.cdf
    if weighting == "lognormal":
        ratio = {"linear": lambda t: t / (1 - t), "cosine": lambda t: np.tan(np.pi / 2 * t)}[path]

        def law(t):
            return stats.lognorm(s=1).cdf(ratio(t))

    assert stats.kstest(np.asarray(t, np.float64), law).pvalue > 0.01


def test_earlier_time():
    process = Interpolant()
    t, u = jnp.array([0.5, 0.1, 1.0, 0.0]), jnp.array([0.25, 1.0, 0.0, 0.5])
    np.testing.assert_allclose(process.earlier(t, u, 0.2), [0.45, 0, 1, 0], atol=1e-7)
    np.testing.assert_array_equal(process.earlier(t, u, 0.0), t)


@pytest.mark.parametrize("path", PATHS)
def test_times_may_differ_within_a_latent(path):
    """Times [B, H, W, 1] give what each place has at its own time."""
    rng, process = np.random.default_rng(3), Interpolant(path)
    x, noise, output = rng.normal(size=(3, 2, 4, 4, 3)).astype(np.float32)
    t = jnp.asarray(rng.uniform(size=(2, 4, 4, 1)), jnp.float32)
    x_t = process.corrupt(x, noise, t)
    parts = []
    for row, column in np.ndindex(4, 4):
        place = np.s_[:, row : row + 1, column : column + 1]
        mine, pair = t[:, row, column, 0], (x[place], noise[place])
        np.testing.assert_allclose(process.corrupt(*pair, mine), x_t[place], rtol=1e-6, atol=1e-7)
        parts.append(process.generation_loss(output[place], *pair, mine))
    loss = process.generation_loss(output, x, noise, t)
    assert loss.shape == (2,) and relative_error(loss, np.mean(parts, axis=0)) < LOSSES
    assert process.earlier(t, t, 0.2).shape == t.shape


def test_the_model_predicts_nothing_beside_the_velocity():
    assert Interpolant.outputs == 1


def test_sampling_times():
    process = Interpolant()
    np.testing.assert_array_equal(process.ode_times(4), [1, 0.75, 0.5, 0.25, 0])
    times = process.sde_times(250)
    assert times.dtype == np.float64 and len(times) == 251
    assert (times[0], times[-2], times[-1]) == (1, 0.04, 0)
    np.testing.assert_allclose(np.diff(times)[:-1], -0.96 / 249, rtol=1e-12)
    assert process.diffusion(0.3) == 0.6
    assert process.normalized_time(0.3) == process.model_time(0.3) == 0.3


@pytest.mark.parametrize(
    ("options", "word"),
    [({"path": "linaer"}, "did you mean 'linear'"), ({"weighting": "log"}, "uniform, lognormal")],
)
def test_unknown_options_are_refused_in_one_line(options, word):
    with pytest.raises(InputError) as error:
        Interpolant(**options)
    assert word in str(error.value) and "\n" not in str(error.value)
