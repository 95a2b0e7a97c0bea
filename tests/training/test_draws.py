"""What a step draws: a function of seed, step and position, of the right distributions."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from tiny import TINY, make_batch, make_objective, vary

from sra_jax.core.random import stream_key
from sra_jax.distributed.mesh import MeshConfig, batch_sharding, make_mesh
from sra_jax.training.step import StepConfig, draw_example


@pytest.fixture(scope="module")
def draw():
    """From (objective, config, batch, step) to an example, compiled."""
    return jax.jit(draw_example, static_argnums=(0, 1))


def arrays(example):
    """The arrays of an example by name. SRA asks for no record fields."""
    assert example.fields == {} and example.condition.keys() == {"labels"}
    assert example.draws.keys() == {"sra"} and example.draws["sra"].keys() == {"t_teacher"}
    return {
        "x": example.x,
        "labels": example.condition["labels"],
        "noise": example.noise,
        "t": example.t,
        "t_teacher": example.draws["sra"]["t_teacher"],
    }


def test_draws_do_not_depend_on_the_devices(draw):
    assert jax.device_count() == 8
    split = batch_sharding(make_mesh(MeshConfig()))
    objective, config, batch = make_objective(), StepConfig(seed=5), make_batch(64)
    alone = draw(objective, config, batch, 7)
    shared = draw(objective, config, jax.device_put(batch, split), 7)
    assert len(shared.x.sharding.device_set) == 8
    for name, one in arrays(alone).items():
        np.testing.assert_array_equal(one, arrays(shared)[name], err_msg=name)


def test_draws_are_functions_of_seed_and_step(draw):
    objective, batch = make_objective(), make_batch(32)
    first = draw(objective, StepConfig(seed=1), batch, 3)
    again = draw(objective, StepConfig(seed=1), batch, 3)
    jax.tree.map(np.testing.assert_array_equal, first, again)
    for seed, step in ((1, 4), (2, 3), (3, 1)):
        other = draw(objective, StepConfig(seed=seed), batch, step)
        for name, one in arrays(first).items():
            assert np.mean(np.asarray(one) == np.asarray(arrays(other)[name])) < 0.95, name
        for name in ("noise", "x", "t"):
            one, two = np.ravel(getattr(first, name)), np.ravel(getattr(other, name))
            if name == "x":  # what is drawn of it
                one, two = (v - np.ravel(batch["moments"][..., :2]) for v in (one, two))
            assert abs(np.corrcoef(one, two)[0, 1]) < 4.5 / np.sqrt(len(one)), name


def test_streams_are_independent(draw):
    """Noise, latent noise, times, gaps and dropout of one step have nothing in common."""
    batch = make_batch(512)
    config = dataclasses.replace(StepConfig(), label_dropout=0.5)
    example = draw(make_objective(), config, batch, 0)
    eps = (example.x - batch["moments"][..., :2]) / batch["moments"][..., 2:]
    assert abs(np.corrcoef(np.ravel(eps), np.ravel(example.noise))[0, 1]) < 4.5 / np.sqrt(eps.size)
    assert stats.kstest(np.ravel(eps), stats.norm.cdf).pvalue > 0.01
    assert stats.kstest(np.ravel(example.noise), stats.norm.cdf).pvalue > 0.01
    gap = example.t - example.draws["sra"]["t_teacher"]
    clear = np.asarray(example.t) > 0.2
    dropped = np.asarray(example.condition["labels"] == 10, float)
    rows = np.stack([example.t, gap, dropped, example.noise[:, 0, 0, 0], eps[:, 0, 0, 0]])
    correlation = np.corrcoef(rows[:, clear])
    assert np.abs(correlation - np.eye(5)).max() < 4.5 / np.sqrt(clear.sum())
    keys = {
        jax.random.key_data(stream_key(seed, name, step)).tobytes()
        for seed in (0, 1)
        for name in ("latent", "noise", "time", "gap", "label_dropout", "init", "init/sra")
        for step in range(3)
    }
    assert len(keys) == 2 * 7 * 3


def test_latents_are_drawn_from_their_posterior(draw):
    batch = make_batch(4, std=0.0)
    config = StepConfig(scale=0.5, shift=-1.0)
    x = draw(make_objective(), config, batch, 0).x
    np.testing.assert_allclose(x, 0.5 * batch["moments"][..., :2] - 1, rtol=1e-6, atol=1e-7)
    batch = make_batch(512, std=0.5)
    x = draw(make_objective(), config, batch, 0).x
    drawn = np.ravel((x + 1) / 0.5 - batch["moments"][..., :2])
    assert stats.kstest(drawn, stats.norm(0, 0.5).cdf).pvalue > 0.01


@pytest.mark.parametrize("dropout", [0.0, 0.1, 1.0])
def test_label_dropout(draw, dropout):
    size = 20_000
    config = vary(TINY, side=4)
    batch = make_batch(size, config)
    settings, classes = StepConfig(label_dropout=dropout), TINY.conditioning.num_classes
    labels = np.asarray(draw(make_objective(config), settings, batch, 0).condition["labels"])
    dropped = labels == classes
    np.testing.assert_array_equal(labels[~dropped], batch["labels"][~dropped])
    # Five standard deviations of a binomial; none or all are exact.
    assert abs(dropped.mean() - dropout) <= 5 * np.sqrt(dropout * (1 - dropout) / size)
    for label in range(classes):
        share = dropped[batch["labels"] == label].mean()
        assert abs(share - dropout) <= 5 * np.sqrt(dropout * (1 - dropout) / 1800)


def test_integer_times_of_dit(draw):
    config = vary(TINY, kind="dit")
    example = draw(make_objective(config), StepConfig(), make_batch(256), 0)
    t_teacher = example.draws["sra"]["t_teacher"]
    assert example.t.dtype == t_teacher.dtype == jnp.int32
    gap = np.asarray(example.t - t_teacher)[np.asarray(example.t) > 200]
    assert gap.min() >= 0 and gap.max() < 200
