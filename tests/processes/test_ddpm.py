"""The discrete chain against the authors' numbers, Bayes' rule and scipy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import LOSSES, VB_AT_0, relative_error
from scipy import integrate, stats

from sra_jax.core.errors import InputError
from sra_jax.processes import DDPM
from sra_jax.processes.ddpm import (
    BIN,
    discretized_log_likelihood,
    kept_timesteps,
    learned_range,
    normal_cdf,
    normal_kl,
)

PROCESS = DDPM()


@pytest.mark.parametrize("draw", ["loss", "loss_for_grad"])
def test_losses_are_golden(dit, dit_model, draw):
    x, noise = dit.images("loss/latents"), dit.images("loss/noise")
    t, labels = dit.jax(f"{draw}/t", jnp.int32), dit.jax("loss/labels", jnp.int32)
    out = dit_model(dit.params("student"), PROCESS.corrupt(x, noise, t), t, labels).prediction
    mse, vb = PROCESS.loss_terms(out, x, noise, t)
    loss = PROCESS.generation_loss(out, x, noise, t)
    assert relative_error(mse, dit[f"{draw}/mse"]) < LOSSES
    first = np.asarray(t) == 0
    assert first.any() == (draw == "loss")
    for actual, name in ((vb, "vb"), (loss, "loss")):
        expected = dit[f"{draw}/{name}"]
        assert relative_error(actual[~first], expected[~first]) < LOSSES
        if first.any():
            assert relative_error(actual[first], expected[first]) < VB_AT_0


def plain_terms(chain_betas, output, x, noise, t):
    """Both terms at t >= 1, per example, in float64, term by term from the DDPM papers."""
    predicted, value = np.split(output.astype(np.float64), 2, axis=-1)
    bars = np.cumprod(1 - chain_betas)
    mse, vb = [], []
    for b in range(len(x)):
        beta, bar, before = chain_betas[t[b]], bars[t[b]], bars[t[b] - 1]
        x_t = np.sqrt(bar) * x[b] + np.sqrt(1 - bar) * noise[b]
        x0 = (x_t - np.sqrt(1 - bar) * predicted[b]) / np.sqrt(bar)
        tilde = beta * (1 - before) / (1 - bar)
        shift = np.sqrt(before) * beta / (1 - bar) * (x[b] - x0)
        log_variance = np.log(tilde) + (value[b] + 1) / 2 * np.log(beta / tilde)
        variance = np.exp(log_variance)
        kl = 0.5 * (np.log(variance / tilde) - 1 + tilde / variance + shift**2 / variance)
        mse.append(np.mean((predicted[b] - noise[b]) ** 2))
        vb.append(np.mean(kl) / np.log(2))
    return np.array(mse), np.array(vb)


def test_losses_agree_with_a_plain_computation():
    rng = np.random.default_rng(0)
    x, noise = rng.normal(size=(2, 6, 4, 4, 3)).astype(np.float32)
    output = rng.normal(size=(6, 4, 4, 6)).astype(np.float32)
    t = np.array([1, 2, 50, 400, 998, 999])
    expected = plain_terms(np.linspace(1e-4, 0.02, 1000), output, x, noise, t)
    actual = PROCESS.loss_terms(output, x, noise, jnp.asarray(t))
    for a, e in zip(actual, expected, strict=True):
        assert np.abs(np.asarray(a) / e - 1).max() < LOSSES


def test_variational_term_teaches_the_variance_alone():
    rng = np.random.default_rng(1)
    x, noise = rng.normal(size=(2, 3, 2, 2, 1)).astype(np.float32)
    output = jnp.asarray(rng.normal(size=(3, 2, 2, 2)), jnp.float32)
    t = jnp.array([0, 5, 700])

    def vb(output):
        return PROCESS.loss_terms(output, x, noise, t)[1].sum()

    gradient = np.asarray(jax.grad(vb)(output))
    assert not gradient[..., :1].any()
    assert (gradient[..., 1:] != 0).all(axis=(1, 2, 3)).all()


@pytest.mark.parametrize("steps", [1000, 250, 10, (3, 20), 2])
def test_posterior_is_that_of_bayes(steps):
    """q(x_{t-1} | x_t, x_0) of Gaussian steps: the product of prior and likelihood."""
    chain = PROCESS.respace(steps)
    full = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    bar = full[chain.timesteps]
    x0, x_t = 0.8, -1.3
    for i in range(1, len(bar)):
        alpha = bar[i] / bar[i - 1]
        prior_mean, prior_precision = np.sqrt(bar[i - 1]) * x0, 1 / (1 - bar[i - 1])
        precision = prior_precision + alpha / (1 - alpha)
        mean = (prior_precision * prior_mean + np.sqrt(alpha) / (1 - alpha) * x_t) / precision
        ours = chain.from_x0[i] * x0 + chain.from_xt[i] * x_t
        np.testing.assert_allclose(ours, mean, rtol=1e-9)
        variance = np.exp(chain.posterior_log_variance[i])
        np.testing.assert_allclose(variance, 1 / precision, rtol=1e-9)
        np.testing.assert_allclose(chain.betas[i], 1 - alpha, rtol=1e-9)
        assert chain.bar_previous[i] == bar[i - 1]
    assert chain.posterior_log_variance[0] == chain.posterior_log_variance[1]
    np.testing.assert_allclose([chain.from_x0[0], chain.from_xt[0]], [1, 0], rtol=1e-9)


def test_corrupted_latents_are_those_of_the_chain():
    """Step by step with variances, the chain reaches signal and noise of `corrupt`."""
    betas, t = np.linspace(1e-4, 0.02, 1000), np.array([0, 1, 300, 999])
    signal, variance, expected = 1.0, 0.0, []
    for beta in betas:
        signal, variance = np.sqrt(1 - beta) * signal, (1 - beta) * variance + beta
        expected.append((signal, np.sqrt(variance)))
    one, zero = np.ones((4, 1, 1, 1), np.float32), np.zeros((4, 1, 1, 1), np.float32)
    signals, noises = (
        PROCESS.corrupt(*pair, jnp.asarray(t)) for pair in ((one, zero), (zero, one))
    )
    actual = np.stack([np.ravel(signals), np.ravel(noises)], 1)
    np.testing.assert_allclose(actual, np.array(expected)[t], rtol=1e-6)


def test_divergence_of_normals_is_the_integral():
    cases = [(0.3, -1.0, -0.2, 0.5), (1.0, 0.4, 1.0, 0.4), (-2.0, 1.0, 0.0, -0.5)]
    for mean1, log1, mean2, log2 in cases:
        p, q = stats.norm(mean1, np.exp(log1 / 2)), stats.norm(mean2, np.exp(log2 / 2))

        def density(x, p=p, q=q):
            return p.pdf(x) * (p.logpdf(x) - q.logpdf(x))

        expected = integrate.quad(density, *p.interval(1 - 1e-14), epsabs=1e-10)[0]
        actual = normal_kl(*(jnp.float32(v) for v in (mean1, log1, mean2, log2)))
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_normal_cdf_is_the_tanh_approximation():
    x = np.linspace(-6, 6, 2401)
    ours = np.asarray(normal_cdf(jnp.asarray(x, jnp.float32)))
    # The approximation's published error is 3e-4 at most; an erf would come nearer than 1e-6.
    assert 1e-4 < np.abs(ours - stats.norm.cdf(x)).max() < 3.1e-4


@pytest.mark.parametrize("log_scale", [-5.0, -2.0, 0.5])
@pytest.mark.parametrize("mean", [-0.97, 0.1, 1.0])
def test_bins_of_the_discretised_normal_partition_the_line(mean, log_scale):
    values = jnp.asarray(-1 + 2 * BIN * np.arange(256), jnp.float32)
    log_likelihood = discretized_log_likelihood(values, jnp.float32(mean), jnp.float32(log_scale))
    probabilities = np.exp(np.asarray(log_likelihood, np.float64))
    assert abs(probabilities.sum() - 1) < 1e-5
    edges = -1 + 2 * BIN * (np.arange(257) - 0.5)
    edges[[0, -1]] = -np.inf, np.inf
    exact = np.diff(stats.norm(mean, np.exp(log_scale)).cdf(edges))
    assert np.abs(probabilities - exact).max() < 7e-4  # twice the approximation's error


def test_learned_range_runs_between_its_bounds():
    np.testing.assert_allclose(
        learned_range(jnp.array([-1.0, 0.0, 1.0]), jnp.float32(-4), jnp.float32(-2)), [-4, -3, -2]
    )


def test_kept_timesteps_are_golden(dit):
    np.testing.assert_array_equal(kept_timesteps(10), dit["sample/timesteps"])
    np.testing.assert_array_equal(PROCESS.respace(10).timesteps, dit["sample/timesteps"])


def accumulated_timesteps(*counts):
    """What improved-diffusion's `space_timesteps` keeps: it adds up the stride."""
    size, extra = divmod(1000, len(counts))
    kept, start = [], 0
    for i, count in enumerate(counts):
        length = size + (i < extra)
        stride = (length - 1) / (count - 1) if count > 1 else 1
        place = 0.0
        for _ in range(count):
            kept.append(start + round(place))
            place += stride
        start += length
    return kept


@pytest.mark.parametrize(
    "counts", [(1,), (2,), (25,), (50,), (100,), (250,), (1000,), (10, 20), (5, 1, 30), (3,) * 7]
)
def test_kept_timesteps_of_sections(counts):
    np.testing.assert_array_equal(kept_timesteps(counts), accumulated_timesteps(*counts))
    if len(counts) == 1:
        np.testing.assert_array_equal(kept_timesteps(counts[0]), kept_timesteps(counts))


@pytest.mark.parametrize("count", range(1, 1001, 37))
def test_any_number_of_timesteps_is_kept_evenly(count):
    kept = kept_timesteps(count)
    assert len(kept) == count and kept[0] == 0 and (count == 1 or kept[-1] == 999)
    assert (np.diff(kept) > 0).all()
    assert count == 1 or np.ptp(np.diff(kept)) <= 1


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        (1001, ["1001 of 1000", "1 to 1000"]),
        (0, ["0 of 1000"]),
        (-3, ["-3 of 1000"]),
        ((10, 501), ["10,501", "501 of 500"]),
        ((10, 0), ["0 of 500"]),
    ],
    ids=str,
)
def test_bad_respacing_is_refused_in_one_line(steps, words):
    with pytest.raises(InputError) as error:
        PROCESS.respace(steps)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_earlier_time_steps_back_by_an_integer_gap():
    t = jnp.array([500, 500, 500, 100, 0, 999, 1])
    u = jnp.array([0.0, 0.5, 0.9999, 0.9, 0.0, 0.0, 0.0])
    teacher = PROCESS.earlier(t, u, 0.2)
    assert teacher.dtype == t.dtype
    np.testing.assert_array_equal(teacher, [500, 400, 301, 1, 1, 999, 1])


def test_drawn_times_and_gaps_cover_their_range():
    t = PROCESS.draw_time(jax.random.key(0), 50_000)
    assert t.dtype == jnp.int32 and t.min() == 0 and t.max() == 999
    counts = np.bincount(np.asarray(t) // 50, minlength=20)
    assert stats.chisquare(counts).pvalue > 0.01
    teacher = PROCESS.earlier(t, jax.random.uniform(jax.random.key(1), t.shape), 0.2)
    assert teacher.min() == 1 and teacher.max() <= 999
    gap = np.asarray(t - teacher)
    inside = np.asarray(t) > 200
    assert gap[inside].min() == 0 and gap[inside].max() == 199


def test_normalized_time():
    assert PROCESS.normalized_time(700) == 0.7


def test_model_time():
    times = [PROCESS.model_time(fraction) for fraction in (0, 0.1, 0.3, 0.5005, 0.7, 0.9994, 1)]
    assert times == [0, 100, 300, 500, 700, 999, 999]
    assert all(PROCESS.model_time(PROCESS.normalized_time(t)) == t for t in range(1000))


def test_times_may_differ_within_a_latent():
    """Times [B, H, W, 1] give what each place has at its own time."""
    rng = np.random.default_rng(3)
    x, noise = rng.normal(size=(2, 2, 4, 4, 3)).astype(np.float32)
    output = jnp.asarray(rng.normal(size=(2, 4, 4, 6)), jnp.float32)
    t = jnp.asarray(rng.integers(0, 1000, (2, 4, 4, 1)))
    x_t = PROCESS.corrupt(x, noise, t)
    mse, vb = PROCESS.loss_terms(output, x, noise, t)
    assert mse.shape == vb.shape == (2,)
    parts = []
    for row, column in np.ndindex(4, 4):
        place = np.s_[:, row : row + 1, column : column + 1]
        mine, pair = t[:, row, column, 0], (x[place], noise[place])
        np.testing.assert_allclose(PROCESS.corrupt(*pair, mine), x_t[place], rtol=1e-6, atol=1e-7)
        parts.append(PROCESS.generation_loss(output[place], *pair, mine))
    loss = PROCESS.generation_loss(output, x, noise, t)
    assert relative_error(loss, np.mean(parts, axis=0)) < LOSSES
    assert PROCESS.earlier(t, jnp.ones_like(t, jnp.float32), 0.2).shape == t.shape


def test_the_model_predicts_a_variance_too():
    assert PROCESS.outputs == 2
