"""SRA: gradients, who learns from whom, the teacher's times, and which settings are refused.

test_check_golden.py compares its losses with the authors'.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import relative_error
from golden_kinds.shared import make_example
from tiny import SMALL, TINY, make_batch, make_objective

from sra_jax.core.errors import InputError
from sra_jax.core.random import stream_key
from sra_jax.methods import SRA, Networks
from sra_jax.models import DiT, Output, Pass
from sra_jax.processes import DDPM, Interpolant
from sra_jax.training.step import StepConfig, draw_example

PAIR = SRA(student_block=1, teacher_block=3)


def find_terms(method, process, trunk, student, teacher, example):
    """The student's output, and the method's terms, given parameters of trunk and method."""
    x_t = process.corrupt(example.x, example.noise, example.t)
    how = method.student_pass(Pass(taps=method.taps()), example.draws[method.name])
    out = trunk.apply(student["trunk"], x_t, example.t, example.condition, how)
    networks = [partial(trunk.apply, params["trunk"]) for params in (student, teacher)]
    nets = Networks(*networks, student["method"].get(method.name, {}), ())
    return out, method.terms(nets, process, example, out)


@pytest.fixture(scope="module")
def golden_losses(sit):
    """From a method to the student's output and the method's terms, on the golden draws."""
    student, teacher = sit.params("student"), sit.params("teacher")
    process, trunk, t = Interpolant(), DiT(sit.config), sit.jax("loss/u_time")
    t_teacher = process.earlier(t, sit.jax("loss/u_gap"), 0.2)
    x, noise = sit.images("loss/latents"), sit.images("loss/noise")
    example = make_example(x, sit.jax("loss/labels", jnp.int32), noise, t, t_teacher)
    find = jax.jit(find_terms, static_argnums=(0, 1, 2))
    return lambda method: find(method, process, trunk, student, teacher, example)


# Gradients: the teacher gives none, and gets none.


@pytest.fixture(scope="module")
def alignment(sit):
    """From (student, teacher) parameters to the mean alignment loss, on the golden draws."""
    process, t = Interpolant(), sit.jax("train/0/u_time")
    t_teacher = process.earlier(t, sit.jax("train/0/u_gap"), 0.2)
    x, noise = sit.images("loss/latents"), sit.images("train/0/noise")
    example = make_example(x, sit.jax("loss/labels", jnp.int32), noise, t, t_teacher)

    def loss(student, teacher):
        _, terms = find_terms(PAIR, process, DiT(sit.config), student, teacher, example)
        return terms.losses["alignment"].mean()

    return loss


def test_teacher_matters_but_gets_no_gradient(sit, alignment):
    student, teacher = sit.params("student"), sit.params("teacher")
    value_and_gradient = jax.jit(jax.value_and_grad(alignment, argnums=1))
    value, gradient = value_and_gradient(student, teacher)
    assert all(not np.any(g) for g in jax.tree.leaves(gradient))
    moved = jax.tree.map(lambda a: a * 1.01, teacher)
    assert abs(value_and_gradient(student, moved)[0] - value) > 1e-3


@pytest.fixture(scope="module")
def student_gradient(alignment):
    return jax.jit(jax.grad(alignment))


def test_student_gets_no_gradient_through_a_teacher_that_is_itself(
    sit, alignment, student_gradient
):
    """Aliased, as in a first step; a frozen copy must give the same gradient."""
    student = sit.params("student")
    aliased = jax.jit(jax.grad(lambda p: alignment(p, p)))(student)
    frozen = student_gradient(student, sit.params("student"))
    norms = [np.linalg.norm(g) for g in jax.tree.leaves(frozen)]
    assert np.sum(norms) > 0.01
    for a, f in zip(jax.tree.leaves(aliased), jax.tree.leaves(frozen), strict=True):
        np.testing.assert_allclose(a, f, rtol=1e-5, atol=1e-8)


def test_gradient_reaches_up_to_the_student_block_and_the_head(sit, student_gradient):
    gradient = student_gradient(sit.params("student"), sit.params("teacher"))
    assert len(jax.tree.leaves(gradient["method"]["sra"])) == 4
    assert all(np.any(g) for g in jax.tree.leaves(gradient["method"]["sra"]))
    kernel = np.asarray(gradient["trunk"]["blocks"]["mlp"]["fc1"]["kernel"])
    assert kernel[0].any() and not kernel[1:].any()
    assert all(not np.any(g) for g in jax.tree.leaves(gradient["trunk"]["final"]))


def test_without_a_head_raw_features_are_aligned(sit, golden_losses):
    headless = SRA(student_block=1, teacher_block=3, head=False, distance="l2")
    student, terms = golden_losses(headless)
    t_teacher = Interpolant().earlier(sit.jax("loss/u_time"), sit.jax("loss/u_gap"), 0.2)
    x, noise = sit.images("loss/latents"), sit.images("loss/noise")
    x_t, labels = Interpolant().corrupt(x, noise, t_teacher), sit.jax("loss/labels", jnp.int32)
    teacher = DiT(sit.config).apply(
        sit.params("teacher")["trunk"], x_t, t_teacher, {"labels": labels}, Pass((3,), 3)
    )
    pair = (np.asarray(f, np.float64) for f in (student.features[1], teacher.features[3]))
    expected = np.square(np.subtract(*pair)).mean((1, 2))
    np.testing.assert_allclose(terms.losses["alignment"], expected, rtol=1e-5)


def test_the_head_is_the_methods_own_parameters():
    """Linear(D -> 2 D), SiLU, Linear(2 D -> D); nothing without a head."""
    shapes = jax.eval_shape(lambda key: PAIR.init(key, DiT(SMALL).sizes), jax.random.key(0))
    assert jax.tree.map(jnp.shape, shapes) == {
        "fc1": {"kernel": (32, 64), "bias": (64,)},
        "fc2": {"kernel": (64, 32), "bias": (32,)},
    }
    headless = SRA(student_block=1, teacher_block=3, head=False)
    assert headless.init(jax.random.key(0), DiT(SMALL).sizes) == {}
    assert PAIR.init_state(DiT(SMALL).sizes) == () and PAIR.fields(DiT(SMALL).sizes) == {}


# What the networks are asked for.


class FakeTrunk:
    """Notes its calls; predicts what it is given; the feature of block k is k throughout."""

    def __init__(self):
        self.calls = []

    def __call__(self, x_t, t, condition, how):
        self.calls.append({"x": x_t, "t": t, "condition": condition, "how": how})
        return Output(x_t, {k: jnp.full((len(x_t), 3, 2), float(k)) for k in how.taps})


def forbidden(*arguments):
    raise AssertionError("called")


def run_fake(method, x, labels, noise, t, t_teacher):
    """(calls of the teacher, terms), the student's feature being the number of its block."""
    teacher = FakeTrunk()
    out = FakeTrunk()(x, t, {"labels": labels}, Pass(taps=method.taps()))
    example = make_example(x, labels, noise, t, t_teacher)
    nets = Networks(forbidden, teacher, {}, ())
    return teacher.calls, method.terms(nets, Interpolant(), example, out)


def test_teacher_sees_the_same_noise_and_labels_at_its_own_time():
    rng = np.random.default_rng(2)
    x, noise = (jnp.asarray(rng.normal(size=(2, 4, 4, 1)), jnp.float32) for _ in range(2))
    labels, t, t_teacher = jnp.array([3, 7]), jnp.array([0.5, 0.9]), jnp.array([0.4, 0.9])
    method = SRA(student_block=2, teacher_block=5, distance="l1", head=False)
    (taught,), terms = run_fake(method, x, labels, noise, t, t_teacher)
    column = (slice(None), None, None, None)
    expected = (1 - t_teacher)[column] * x + t_teacher[column] * noise
    np.testing.assert_allclose(taught["x"], expected, rtol=1e-6)
    np.testing.assert_array_equal(taught["t"], t_teacher)
    assert taught["condition"]["labels"] is labels
    assert taught["how"] == Pass(taps=(5,), stop_at=5)
    np.testing.assert_allclose(terms.losses["alignment"], [3, 3])  # |2 - 5|
    assert terms.metrics.keys() == {"student_feature_norm", "teacher_feature_norm"}
    np.testing.assert_allclose(terms.metrics["student_feature_norm"], 2 * np.sqrt(2), rtol=1e-6)
    np.testing.assert_allclose(terms.metrics["teacher_feature_norm"], 5 * np.sqrt(2), rtol=1e-6)


def test_part_of_the_batch_is_aligned_as_in_the_whole(golden_losses):
    out, whole = golden_losses(PAIR)
    half_out, half = golden_losses(SRA(student_block=1, teacher_block=3, teacher_fraction=0.5))
    np.testing.assert_array_equal(half_out.prediction, out.prediction)
    np.testing.assert_array_equal(half_out.features[1], out.features[1])
    aligned = whole.losses["alignment"][::2]
    assert relative_error(half.losses["alignment"], aligned) < 1e-6


def test_teacher_sees_only_what_is_aligned():
    x = jnp.arange(6.0).reshape(6, 1, 1, 1)
    labels, t = jnp.arange(6), jnp.linspace(0.1, 0.6, 6)
    method = SRA(
        student_block=1, teacher_block=2, distance="l1", head=False, teacher_fraction=0.333
    )
    assert method.group == 3
    (taught,), terms = run_fake(method, x, labels, x, t, t - 0.1)
    np.testing.assert_array_equal(taught["x"].ravel(), [0, 3])  # data and noise are alike
    np.testing.assert_array_equal(taught["condition"]["labels"], [0, 3])
    np.testing.assert_array_equal(taught["t"], (t - 0.1)[jnp.array([0, 3])])
    np.testing.assert_array_equal(terms.losses["alignment"], [1, 1])


# Times.


@pytest.mark.parametrize("process", [Interpolant(), DDPM()], ids=["sit", "dit"])
def test_dynamic_gaps_are_uniform_and_fixed_gaps_are_not(process):
    keys, sizes = partial(stream_key, 0), DiT(TINY).sizes
    scale = 1000 if isinstance(process, DDPM) else 1
    t = process.draw_time(keys("time"), 20_000)
    dynamic, fixed = (
        SRA(student_block=1, teacher_block=2, gap=gap, gap_max=0.2).draw(keys, process, t, sizes)
        for gap in ("dynamic", "fixed")
    )
    assert dynamic.keys() == fixed.keys() == {"t_teacher"}
    inside = np.asarray(t) > 0.21 * scale
    np.testing.assert_allclose((t - fixed["t_teacher"])[inside] / scale, 0.2, atol=1e-6)
    gap = np.asarray(t - dynamic["t_teacher"], np.float64)[inside] / scale
    assert gap.min() >= 0 and gap.max() < 0.2 + 1e-6
    # Uniform on [0, 0.2): mean 0.1 (DiT's floor takes half a step off), quartiles even.
    assert abs(gap.mean() - 0.1) < 5 * 0.2 / np.sqrt(12 * inside.sum()) + 0.5 / 1000
    quarters = np.histogram(gap, [-1, 0.0499, 0.0999, 0.1499, 1])[0] / inside.sum()
    assert np.abs(quarters - 0.25).max() < 0.02


def test_times_are_the_same_with_every_gap_and_without_a_method():
    batch, methods = make_batch(64), [PAIR, SRA(student_block=1, teacher_block=2, gap="fixed")]
    times = [
        draw_example(make_objective(method=method), StepConfig(), batch, 0).t
        for method in (*methods, None)
    ]
    np.testing.assert_array_equal(times[0], times[1])
    np.testing.assert_array_equal(times[0], times[2])


# Bad input.


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"student_block": 9}, "student block 9 must lie between 1 and the teacher block 8"),
        ({"student_block": 0}, "student block 0"),
        ({"distance": "smooth-l1"}, "did you mean 'smooth_l1'"),
        ({"gap": "random"}, "dynamic, fixed"),
        ({"gap_max": 1.5}, "gap_max is 1.5"),
        ({"gap_max": -0.1}, "gap_max is -0.1"),
        ({"gap_max": float("nan")}, "gap_max is nan"),
        ({"teacher_fraction": 0.0}, "teacher_fraction is 0.0"),
        ({"teacher_fraction": 2.0}, "teacher_fraction is 2.0"),
        ({"teacher_fraction": 0.4}, "teacher_fraction is 0.4"),
        ({"teacher_fraction": float("nan")}, "teacher_fraction is nan"),
    ],
    ids=str,
)
def test_bad_config_is_refused_in_one_line(options, word):
    with pytest.raises(InputError) as error:
        SRA(**({"student_block": 3, "teacher_block": 8} | options))
    assert word in str(error.value) and "\n" not in str(error.value)


def test_blocks_that_the_trunk_lacks_are_refused():
    sizes = DiT(SMALL).sizes  # three blocks
    PAIR.check(sizes)
    with pytest.raises(InputError, match="teacher_block is 4, but the model has 3 blocks"):
        SRA(student_block=1, teacher_block=4).check(sizes)
