"""The solvers on Gaussian data, which has a formula for all.

test_check_golden.py compares their samples with the authors'.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import relative_error

from sra_jax.conditioning import ClassLabels
from sra_jax.core.errors import InputError
from sra_jax.models import Output
from sra_jax.processes import DDPM, Interpolant
from sra_jax.sampling.guidance import Guidance, make_predictors
from sra_jax.sampling.solvers import make_steps, parse_steps, solve

UNGUIDED, LABELS = Guidance(), ClassLabels(10)

# Gaussian data of four pixels, mean and covariance known: the best model is linear.

MEAN = np.array([0.5, -1.0, 0.0, 0.3])
SPREAD = np.array([[0.8, 0, 0, 0], [0.4, 0.5, 0, 0], [-0.3, 0.2, 0.6, 0], [0.1, 0, 0.3, 0.9]])
COVARIANCE = SPREAD @ SPREAD.T
EIGENVALUES, EIGENVECTORS = np.linalg.eigh(COVARIANCE)


def to_pixels(x):
    """[B, 4] -> [B, 2, 2, 1]"""
    return jnp.asarray(x, jnp.float32).reshape(-1, 2, 2, 1)


def whitened(pixels, mean, xp=jnp):
    """[B, 2, 2, 1] -> [B, 4] along the covariance's axes, `mean` taken off."""
    return (pixels.reshape(-1, 4) - mean) @ xp.asarray(EIGENVECTORS, pixels.dtype)


def expectations(alpha, sigma, x_t):
    """E[x | x_t] and E[noise | x_t], where x_t = alpha x + sigma noise."""
    white = whitened(x_t, alpha * MEAN) / (alpha**2 * EIGENVALUES + sigma**2)
    back = jnp.asarray(EIGENVECTORS.T, jnp.float32)
    x = MEAN + (alpha * EIGENVALUES * white) @ back
    return x.reshape(x_t.shape), (sigma * white @ back).reshape(x_t.shape)


def best_velocity(path):
    """The model that minimises the generation loss, from the paths' textbook formulas."""

    def apply(x_t, t, condition):
        t = t[0]
        angle = np.pi / 2 * t
        alpha, sigma, d_alpha, d_sigma = {
            "linear": (1 - t, t, -1.0, 1.0),
            "cosine": (
                jnp.cos(angle),
                jnp.sin(angle),
                -np.pi / 2 * jnp.sin(angle),
                np.pi / 2 * jnp.cos(angle),
            ),
        }[path]
        x, noise = expectations(alpha, sigma, x_t)
        return Output(d_alpha * x + d_sigma * noise, {})

    return apply


def best_noise(variance_of=None):
    """The noise DDPM's loss is least for, and a variance output [-1, 1] by table of the time."""
    bars = jnp.asarray(np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)), jnp.float32)
    table = jnp.zeros((1000, 4)) if variance_of is None else jnp.asarray(variance_of, jnp.float32)

    def apply(x_t, t, condition):
        i = t[0].astype(jnp.int32)
        bar = bars[i]
        noise = expectations(jnp.sqrt(bar), jnp.sqrt(1 - bar), x_t)[1]
        variance = jnp.broadcast_to(table[i].reshape(1, 2, 2, 1), x_t.shape)
        return Output(jnp.concatenate([noise, variance], -1), {})

    return apply


def flow_map(z, alpha, sigma):
    """Where the probability flow takes noise `z`, from signal `alpha` and noise `sigma` to data:
    Gaussian to Gaussian along each axis of the covariance, in float64."""
    white = whitened(np.asarray(z, np.float64), alpha * MEAN, np)
    scale = np.sqrt(EIGENVALUES / (alpha**2 * EIGENVALUES + sigma**2))
    return MEAN + (white * scale) @ EIGENVECTORS.T


def run(process, solver, steps, apply, z, guidance=UNGUIDED, seed=0):
    @jax.jit
    def from_noise(z):
        def noise(i):
            return jax.random.normal(jax.random.fold_in(jax.random.key(seed), i), z.shape)

        condition = {"labels": jnp.zeros(len(z), jnp.int32)}
        predictors = make_predictors(apply, guidance, LABELS, condition)
        return solve(process, make_steps(process, solver, steps), predictors, guidance, noise, z)

    return np.asarray(from_noise(z), np.float64).reshape(-1, 4)


@pytest.fixture(scope="module")
def few():
    return to_pixels(np.random.default_rng(0).normal(size=(64, 4)))


@pytest.mark.parametrize("path", ["linear", "cosine"])
@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2)])
def test_order_of_the_ode_solvers(few, path, solver, order):
    """Twice the steps, half (a quarter of) the distance to the exact flow."""
    process, exact = Interpolant(path), flow_map(few, 0.0, 1.0)
    errors = [
        relative_error(run(process, solver, steps, best_velocity(path), few), exact)
        for steps in (10, 20, 40)
    ]
    ratios = np.array(errors[:-1]) / errors[1:]
    assert np.abs(np.log2(ratios) - order).max() < 0.25, errors
    assert errors[-1] < {1: 0.05, 2: 3e-3}[order]


def test_heun_reaches_the_exact_flow(few):
    ours = run(Interpolant(), "heun", 400, best_velocity("linear"), few)
    assert relative_error(ours, flow_map(few, 0.0, 1.0)) < 5e-5


def assert_gaussian(samples, bias):
    """Mean and covariance are those of the data: five standard errors, plus the solver's `bias` as
    a share of the largest entry of the covariance."""
    n = len(samples)
    variances = np.diag(COVARIANCE)
    allowed = bias * variances.max()
    assert (np.abs(samples.mean(0) - MEAN) < 5 * np.sqrt(variances / n) + allowed).all()
    error = np.abs(np.cov(samples.T) - COVARIANCE)
    standard = np.sqrt((np.outer(variances, variances) + COVARIANCE**2) / n)
    assert (error < 5 * standard + allowed).all(), error / standard


@pytest.mark.parametrize("path", ["linear", "cosine"])
def test_sde_recovers_mean_and_covariance(path):
    """250 steps. Euler-Maruyama is of first order: a bias of a hundredth is allowed."""
    z = to_pixels(np.random.default_rng(1).normal(size=(20_000, 4)))
    samples = run(Interpolant(path), "sde", 250, best_velocity(path), z)
    assert_gaussian(samples, bias=0.01)
    other = run(Interpolant(path), "sde", 250, best_velocity(path), z, seed=1)
    assert relative_error(other, samples) > 0.5  # it is the noise that decides


def true_reverse_variances(eigenvalues):
    """Variance of q(x_{t-1} | x_t) [1000, D] for independent Gaussian data, by Bayes' rule."""
    betas = np.linspace(1e-4, 0.02, 1000)[:, None]
    bar = np.cumprod(1 - betas, axis=0)
    before = np.concatenate([np.ones((1, 1)), bar[:-1]])
    marginal = before * eigenvalues + 1 - before  # of x_{t-1}
    return marginal * betas / ((1 - betas) * marginal + betas)


def test_ddpm_of_all_steps_recovers_mean_and_variance():
    """Pixels are independent here, as DDPM's variances are. With the model's noise and variance the
    best ones, each reverse step is exact: what is left is the statistical error, and the noise
    that the last step does not add (a variance of at most beta_0 = 1e-4)."""
    variances = np.array([1.0, 0.5, 0.1, 0.01])
    process = DDPM()
    chain = process.chain
    low, high = chain.posterior_log_variance[:, None], np.log(chain.betas)[:, None]
    outputs = 2 * (np.log(true_reverse_variances(variances)) - low) / (high - low + 1e-30) - 1
    outputs[0] = 0  # of the last step, which adds no noise
    np.testing.assert_allclose(outputs[1:, 0], 1, atol=1e-6)  # unit variance: the upper bound
    assert outputs[1:].min() > -1 and outputs[1:].max() < 1 + 1e-6
    bars = jnp.asarray(chain.bar, jnp.float32)

    def apply(x_t, t, condition):
        i = t[0].astype(jnp.int32)
        bar = bars[i]
        mean, variance = to_pixels(MEAN), to_pixels(variances)
        noise = jnp.sqrt(1 - bar) * (x_t - jnp.sqrt(bar) * mean) / (bar * variance + 1 - bar)
        value = jnp.broadcast_to(to_pixels(outputs.reshape(-1))[i], x_t.shape)
        return Output(jnp.concatenate([noise, value], -1), {})

    n = 10_000
    z = to_pixels(np.random.default_rng(2).normal(size=(n, 4)))
    samples = run(process, "ddpm", 1000, apply, z)
    # sqrt(bar_999) = 0.006 of the mean is still in x_999, and start noise has none of it.
    missing = np.sqrt(chain.bar[-1]) * np.abs(MEAN)
    assert (np.abs(samples.mean(0) - MEAN) < 5 * np.sqrt(variances / n) + missing).all()
    error = np.abs(samples.var(0) - variances)
    assert (error < 5 * variances * np.sqrt(2 / n) + 1.1e-4).all()
    correlation = np.corrcoef(samples.T)
    assert np.abs(correlation - np.eye(4)).max() < 5 / np.sqrt(n)


def test_ddim_is_deterministic_and_follows_the_flow(few):
    """First order too, on the chain's own clock; the chain starts at its last, not quite pure,
    time."""
    bar = np.prod(1 - np.linspace(1e-4, 0.02, 1000))
    exact = flow_map(few, np.sqrt(bar), np.sqrt(1 - bar))
    errors = {}
    for steps in (125, 250, 1000):
        samples = [run(DDPM(), "ddim", steps, best_noise(), few, seed=seed) for seed in (0, 1)]
        np.testing.assert_array_equal(*samples)
        errors[steps] = relative_error(samples[0], exact)
    assert errors[1000] < 5e-3
    assert 1.7 < errors[125] / errors[250] < 2.3


def test_a_scale_of_one_is_no_guidance(few):
    plain = run(Interpolant(), "heun", 5, best_velocity("linear"), few)
    one = run(Interpolant(), "heun", 5, best_velocity("linear"), few, Guidance(1.0, 0.2, 0.8))
    np.testing.assert_array_equal(one, plain)


def test_times_and_noise_of_each_step():
    """Steps go down in time; each draws the noise of its own number."""
    process, seen = Interpolant(), []

    def apply(x, t, condition):
        jax.debug.callback(lambda t: seen.append(float(t)), t[0], ordered=True)
        return Output(jnp.zeros_like(x), {})

    predictors = make_predictors(apply, UNGUIDED, LABELS, LABELS.null(1))
    z = jnp.zeros((1, 2, 2, 1))
    steps = make_steps(process, "sde", 4)
    guidance = UNGUIDED
    jax.block_until_ready(
        solve(process, steps, predictors, guidance, lambda i: 10.0**i * jnp.ones_like(z), z)
    )
    jax.effects_barrier()
    np.testing.assert_allclose(seen, [1, 0.68, 0.36, 0.04], rtol=1e-6)
    assert [step.time for step in steps] == list(np.linspace(1, 0.04, 4))


# Bad input.


@pytest.mark.parametrize(
    ("process", "solver", "steps", "words"),
    [
        (Interpolant(), "eulr", 10, ["'eulr'", "did you mean 'euler'"]),
        (Interpolant(), "ddpm", 10, ["'ddpm'", "sde, euler, heun"]),
        (DDPM(), "heun", 10, ["'heun'", "ddpm, ddim"]),
        (Interpolant(), "euler", 0, ["steps is 0", "at least 1"]),
        (Interpolant(), "heun", -1, ["steps is -1"]),
        (Interpolant(), "sde", 1, ["steps is 1", "at least 2"]),
        (Interpolant(), "euler", (10, 20), ["(10, 20)"]),
        (DDPM(), "ddpm", 1001, ["1001 of 1000"]),
        (DDPM(), "ddim", (600, 10), ["600 of 500"]),
    ],
    ids=str,
)
def test_bad_steps_are_refused_in_one_line(process, solver, steps, words):
    with pytest.raises(InputError) as error:
        make_steps(process, solver, steps)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_steps_are_parsed():
    assert parse_steps("250") == 250
    assert parse_steps("10,20, 30") == (10, 20, 30)
    for text in ("", "ten", "10,", "2.5"):
        with pytest.raises(InputError) as error:
            parse_steps(text)
        assert repr(text) in str(error.value) and "\n" not in str(error.value)
