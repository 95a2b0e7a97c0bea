"""The method: distances, gradients, and who may learn from whom.

test_check_golden.py compares its losses with the authors'.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import LOSSES, relative_error

from sra_jax.core.errors import InputError
from sra_jax.methods.distances import DISTANCES
from sra_jax.methods.sra import SRAConfig, WeightSchedule, draw_times, sra_loss
from sra_jax.models import Output
from sra_jax.processes import DDPM, Interpolant


@pytest.fixture(scope="module")
def golden_losses(sit, sit_model):
    """From (config, path, weighting) to `Losses` on the golden draws, student and teacher."""
    student, teacher = sit.params("student"), sit.params("teacher")

    def compute(config, path, weighting):
        process = Interpolant(path, weighting)
        t = sit.jax("loss/u_time")
        if weighting == "lognormal":
            t = process.lognormal_time(sit.jax("loss/normal_time"))
        return sra_loss(
            config,
            process,
            sit_model.bind(student),
            sit_model.bind(teacher),
            partial(sit_model.project, student),
            sit.images("loss/latents"),
            sit.jax("loss/labels", jnp.int32),
            sit.images("loss/noise"),
            t,
            process.teacher_time(t, sit.jax("loss/u_gap"), 0.2),
        )

    return compute


# Distances, against formulas written out in float64.


def plain_smooth_l1(a, b, beta=0.05):
    """torch.nn.functional.smooth_l1_loss(a, b, beta=beta), elementwise as its documentation says,
    then averaged for each example."""
    loss = np.zeros(a.shape)
    for i, d in np.ndenumerate(np.abs(a - b)):
        loss[i] = 0.5 * d * d / beta if d < beta else d - 0.5 * beta
    return loss.mean((1, 2))


def plain_cosine(a, b):
    """One minus the cosine of every token, averaged for each example."""
    return np.array(
        [
            np.mean(
                [
                    1 - p @ q / np.linalg.norm(p) / np.linalg.norm(q)
                    for p, q in zip(*pair, strict=True)
                ]
            )
            for pair in zip(a, b, strict=True)
        ]
    )


PLAIN = {
    "smooth_l1": plain_smooth_l1,
    "l1": lambda a, b: np.abs(a - b).mean((1, 2)),
    "l2": lambda a, b: ((a - b) ** 2).mean((1, 2)),
    "cosine": plain_cosine,
    "cosine_over_tokens": lambda a, b: plain_cosine(a.swapaxes(1, 2), b.swapaxes(1, 2)),
}


@pytest.mark.parametrize("spread", [0.02, 0.1, 3.0])
@pytest.mark.parametrize("distance", PLAIN)
def test_distances_are_their_formulas(distance, spread):
    rng = np.random.default_rng(0)
    target = rng.normal(size=(3, 5, 8)).astype(np.float32)
    prediction = (target + spread * rng.normal(size=target.shape)).astype(np.float32)
    actual = DISTANCES[distance](jnp.asarray(prediction), jnp.asarray(target))
    expected = PLAIN[distance](prediction.astype(np.float64), target.astype(np.float64))
    if "cosine" in distance:  # near parallel features, 1 - cosine keeps the digits of 1
        np.testing.assert_allclose(actual, expected, atol=3e-7)
    else:
        np.testing.assert_allclose(actual, expected, rtol=1e-6)
    assert not jnp.isnan(DISTANCES[distance](jnp.zeros((1, 2, 3)), jnp.zeros((1, 2, 3)))).any()


@pytest.mark.parametrize("distance", PLAIN)
def test_distances_are_taken_in_float32(distance):
    rng = np.random.default_rng(1)
    pair = [jnp.asarray(rng.normal(size=(2, 64, 32)), jnp.bfloat16) for _ in range(2)]
    actual = DISTANCES[distance](*pair)
    assert actual.dtype == jnp.float32
    expected = PLAIN[distance](*(np.asarray(a, np.float64) for a in pair))
    np.testing.assert_allclose(actual, expected, rtol=3e-6)


# Gradients: the teacher gives none, and gets none.


@pytest.fixture(scope="module")
def alignment(sit, sit_model):
    """From (student, teacher) parameters and a config to the mean alignment loss, golden draws."""
    process, t = Interpolant(), sit.jax("train/0/u_time")
    t_teacher = process.teacher_time(t, sit.jax("train/0/u_gap"), 0.2)
    x, noise = sit.images("loss/latents"), sit.images("train/0/noise")
    labels = sit.jax("loss/labels", jnp.int32)

    def loss(student, teacher, config=SRAConfig(1, 3)):  # noqa: B008
        apply = sit_model.module.apply
        return sra_loss(
            config,
            process,
            partial(apply, {"params": student}),
            partial(apply, {"params": teacher}),
            partial(apply, {"params": student}, method="project"),
            x,
            labels,
            noise,
            t,
            t_teacher,
        ).alignment.mean()

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
    assert all(np.any(g) for g in jax.tree.leaves(gradient["head"]))
    kernel = np.asarray(gradient["blocks"]["mlp"]["fc1"]["kernel"])
    assert kernel[0].any() and not kernel[1:].any()
    assert all(not np.any(g) for g in jax.tree.leaves(gradient["final"]))


def test_without_a_head_raw_features_are_aligned(sit, sit_model, golden_losses):
    config = SRAConfig(1, 3, head=False, distance="l2")
    losses = golden_losses(config, "linear", "uniform")
    student, teacher = (np.asarray(f, np.float64) for f in losses[2:])
    np.testing.assert_allclose(losses.alignment, ((student - teacher) ** 2).mean((1, 2)), rtol=1e-5)

    def no_head(feature):
        raise AssertionError("the head was applied")

    x = jnp.zeros((2, 2, 2, 1))
    model = FakeModel()
    sra_loss(
        config, Interpolant(), model, model, no_head, x, jnp.zeros(2, int), x, *2 * [x[:, 0, 0, 0]]
    )


# What the models are asked for.


class FakeModel:
    """Notes its calls; predicts what it is given."""

    def __init__(self):
        self.calls = []

    def __call__(self, x, t, labels, taps=(), stop_at=None):
        self.calls.append({"x": x, "t": t, "labels": labels, "taps": taps, "stop_at": stop_at})
        return Output(x, {k: jnp.full((len(x), 3, 2), float(k)) for k in taps})


def test_teacher_sees_the_same_noise_and_labels_at_its_own_time():
    student, teacher, process = FakeModel(), FakeModel(), Interpolant()
    rng = np.random.default_rng(2)
    x, noise = (jnp.asarray(rng.normal(size=(2, 4, 4, 1)), jnp.float32) for _ in range(2))
    labels, t, t_teacher = jnp.array([3, 7]), jnp.array([0.5, 0.9]), jnp.array([0.4, 0.9])
    config = SRAConfig(2, 5, distance="l1")
    losses = sra_loss(
        config, process, student, teacher, lambda h: 10 * h, x, labels, noise, t, t_teacher
    )
    (seen,), (taught,) = student.calls, teacher.calls
    column = (slice(None), None, None, None)
    np.testing.assert_allclose(seen["x"], (1 - t)[column] * x + t[column] * noise, rtol=1e-6)
    expected = (1 - t_teacher)[column] * x + t_teacher[column] * noise
    np.testing.assert_allclose(taught["x"], expected, rtol=1e-6)
    np.testing.assert_array_equal(taught["t"], t_teacher)
    np.testing.assert_array_equal(seen["t"], t)
    assert seen["labels"] is labels and taught["labels"] is labels
    assert (seen["taps"], seen["stop_at"]) == ((2,), None)
    assert (taught["taps"], taught["stop_at"]) == ((5,), 5)
    np.testing.assert_allclose(losses.alignment, [15, 15])  # |10 * 2 - 5|


def test_part_of_the_batch_is_aligned_as_in_the_whole(golden_losses):
    whole = golden_losses(SRAConfig(1, 3), "linear", "uniform")
    half = golden_losses(SRAConfig(1, 3, teacher_fraction=0.5), "linear", "uniform")
    np.testing.assert_array_equal(half.generation, whole.generation)
    np.testing.assert_array_equal(half.student_feature, whole.student_feature[::2])
    for part, all_ in zip(half[1:], whole[1:], strict=True):
        assert relative_error(part, all_[::2]) < 1e-6


def test_teacher_sees_only_what_is_aligned():
    student, teacher = FakeModel(), FakeModel()
    x = jnp.arange(6.0).reshape(6, 1, 1, 1)
    labels, t = jnp.arange(6), jnp.linspace(0.1, 0.6, 6)
    config = SRAConfig(1, 2, distance="l1", teacher_fraction=0.333)
    losses = sra_loss(
        config, Interpolant(), student, teacher, lambda h: h, x, labels, x, t, t - 0.1
    )
    assert len(student.calls[0]["x"]) == 6 and losses.generation.shape == (6,)
    (taught,) = teacher.calls
    np.testing.assert_array_equal(taught["x"].ravel(), [0, 3])  # data and noise are alike
    np.testing.assert_array_equal(taught["labels"], [0, 3])
    np.testing.assert_array_equal(taught["t"], (t - 0.1)[jnp.array([0, 3])])
    np.testing.assert_array_equal(losses.alignment, [1, 1])


def test_without_a_config_no_teacher_runs(sit, golden_losses):
    def forbidden(*arguments, **options):
        raise AssertionError("called")

    x = jnp.ones((2, 4, 4, 1))
    t = jnp.array([0.2, 0.6])
    model = FakeModel()
    losses = sra_loss(
        None, Interpolant(), model, forbidden, forbidden, x, jnp.zeros(2, int), -x, t, t
    )
    # The model returns x_t = (1 - 2t), the target is noise - x = -2.
    np.testing.assert_allclose(losses.generation, (1 - 2 * t + 2) ** 2, rtol=1e-6)
    assert losses[1:] == (None, None, None)
    assert model.calls[0]["taps"] == ()
    plain = golden_losses(None, "linear", "uniform")
    assert relative_error(plain.generation, sit["loss/linear/uniform/generation"]) < LOSSES


# Times.


@pytest.mark.parametrize("process", [Interpolant(), DDPM()], ids=["sit", "dit"])
def test_dynamic_gaps_are_uniform_and_fixed_gaps_are_not(process):
    keys = jax.random.split(jax.random.key(0))
    scale = 1000 if isinstance(process, DDPM) else 1
    t, dynamic = draw_times(SRAConfig(1, 2, gap_max=0.2), process, *keys, 20_000)
    same_t, fixed = draw_times(SRAConfig(1, 2, gap="fixed", gap_max=0.2), process, *keys, 20_000)
    plain_t, plain = draw_times(None, process, *keys, 20_000)
    np.testing.assert_array_equal(t, same_t)
    np.testing.assert_array_equal(t, plain_t)
    np.testing.assert_array_equal(plain, plain_t)
    inside = np.asarray(t) > 0.21 * scale
    np.testing.assert_allclose((t - fixed)[inside] / scale, 0.2, atol=1e-6)
    gap = np.asarray(t - dynamic, np.float64)[inside] / scale
    assert gap.min() >= 0 and gap.max() < 0.2 + 1e-6
    # Uniform on [0, 0.2): mean 0.1 (DiT's floor takes half a step off), quartiles even.
    assert abs(gap.mean() - 0.1) < 5 * 0.2 / np.sqrt(12 * inside.sum()) + 0.5 / 1000
    quarters = np.histogram(gap, [-1, 0.0499, 0.0999, 0.1499, 1])[0] / inside.sum()
    assert np.abs(quarters - 0.25).max() < 0.02


# The weight.


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
        SRAConfig(**({"student_block": 3, "teacher_block": 8} | options))
    assert word in str(error.value) and "\n" not in str(error.value)
