"""Effective rank and alignment against closed forms and a plain computation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import ROUNDING
from scipy import linalg, stats

from sra_jax.core.random import stream_key
from sra_jax.methods import SRA
from sra_jax.models import DiT
from sra_jax.probing import alignment as spectra
from sra_jax.probing.alignment import alignment, effective_rank
from sra_jax.probing.features import FeatureExtractor
from sra_jax.processes import DDPM, Interpolant


def test_effective_rank_counts_directions():
    rng = np.random.default_rng(0)
    basis = linalg.orth(rng.normal(size=(100, 9)) - rng.normal(size=(1, 9)))
    basis = linalg.orth(basis - basis.mean(0))
    for rank in (1, 4, 9):
        x = basis[:, :rank] @ linalg.orth(rng.normal(size=(16, rank))).T
        assert effective_rank(np.float32(x + 3)) == pytest.approx(rank, rel=1e-3)
    assert effective_rank(np.full((10, 4), 2.5, np.float32)) == 0


@pytest.mark.parametrize("shape", [(200, 30), (12, 30)])
def test_effective_rank_is_the_entropy_of_the_singular_values(shape):
    x = np.random.default_rng(0).normal(size=shape) * np.linspace(0.1, 5, 30)
    values = linalg.svdvals(x - x.mean(axis=0))
    assert effective_rank(x) == pytest.approx(np.exp(stats.entropy(values)), rel=1e-5)


def extractor_of(golden, process, *others, **more):
    return FeatureExtractor(
        DiT(golden.config), process, golden.config.conditioning, *others, **more
    )


def project(head, h):
    """Linear, SiLU, linear, as the paper has them."""
    h = h @ head["fc1"]["kernel"] + head["fc1"]["bias"]
    return jax.nn.silu(h) @ head["fc2"]["kernel"] + head["fc2"]["bias"]


@pytest.mark.parametrize("gap, teacher_time", [("dynamic", 0.4), ("fixed", 0.3)])
def test_alignment_is_the_cosine_of_what_training_compares(
    monkeypatch, sit, sit_model, gap, teacher_time
):
    monkeypatch.setattr(spectra, "BATCH", 2)
    params = sit.params("student")
    student, head, teacher = (
        params["trunk"],
        params["method"]["sra"],
        sit.params("teacher")["trunk"],
    )
    method = SRA(
        student_block=2,
        teacher_block=3,
        gap=gap,
        gap_max=0.2,
        distance="l1",
        teacher_fraction=0.5,  # all are compared, for all that
    )
    extractor = extractor_of(sit, Interpolant(), 0.5, 0.1, seed=7)
    side, channels = sit.config.layout.height, sit.config.layout.channels
    moments = np.random.default_rng(0).normal(size=(5, side, side, 2 * channels))
    numbers = np.array([3, 1, 4, 15, 9], np.int32)
    found = alignment(extractor, method, student, teacher, head, np.float32(moments), numbers, 0.5)

    x = np.float32(moments[..., :channels]) * 0.5 + 0.1
    key = stream_key(7, "probe")
    noise = np.stack([jax.random.normal(jax.random.fold_in(key, n), x.shape[1:]) for n in numbers])
    null = jnp.full(5, sit.config.conditioning.num_classes)

    def features(params, t, block):
        x_t = (1 - t) * x + t * noise
        return sit_model(params, x_t, jnp.full(5, t), null, taps=(block,)).features[block]

    h = np.asarray(project(head, features(student, 0.5, 2)), np.float64)
    target = np.asarray(features(teacher, teacher_time, 3), np.float64)
    lengths = np.linalg.norm(h, axis=-1) * np.linalg.norm(target, axis=-1)
    assert found == pytest.approx(((h * target).sum(-1) / lengths).mean(), abs=5 * ROUNDING)


def test_alignment_of_a_discrete_process(dit):
    method = SRA(student_block=1, teacher_block=2, gap_max=0.2)
    params = dit.params("student")
    trunk, head = params["trunk"], params["method"]["sra"]
    side, channels = dit.config.layout.height, dit.config.layout.channels
    moments = np.ones((2, side, side, 2 * channels), np.float32)
    extractor = extractor_of(dit, DDPM())
    found = alignment(extractor, method, trunk, trunk, head, moments, np.arange(2), 1.0)
    assert -1 <= found <= 1
