"""LayerSync: its loss, gradient and refusals. test_check_golden.py compares with the release."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import ROUNDING, relative_error

from sra_jax.core.errors import InputError
from sra_jax.methods.layersync import LayerSync
from sra_jax.models import Output

METHOD = LayerSync(weak_block=1, strong_block=3)


@pytest.fixture(scope="module")
def features():
    rng = np.random.default_rng(0)
    return {k: jnp.asarray(rng.normal(size=(2, 5, 8)), jnp.float32) for k in (1, 3)}


def loss(features):
    (values,) = METHOD.terms(None, None, None, Output(None, features)).losses.values()
    return values


def test_the_loss_is_minus_the_mean_cosine_over_tokens(features):
    weak, strong = (np.asarray(features[k], np.float64) for k in (1, 3))
    norms = np.linalg.norm(weak, axis=-1) * np.linalg.norm(strong, axis=-1)
    expected = -(np.sum(weak * strong, -1) / norms).mean(1)
    np.testing.assert_allclose(loss(features), expected, atol=ROUNDING)


def test_the_strong_block_gets_no_gradient(features):
    gradient = jax.grad(lambda f: loss(f).sum())(features)
    assert np.any(gradient[1]) and not np.any(gradient[3])
    moved = features | {3: -features[3]}
    assert relative_error(loss(moved), -loss(features)) < ROUNDING


@pytest.mark.parametrize("blocks", [(3, 3), (4, 3)])
def test_the_strong_block_must_lie_above_the_weak(blocks):
    with pytest.raises(InputError, match=f"weak_block={blocks[0]}, expected below"):
        LayerSync(weak_block=blocks[0], strong_block=blocks[1])
