"""What is kept for the backward pass and what is computed again changes memory, and no number."""

import jax
import jax.numpy as jnp
import pytest
from golden import ROUNDING, relative_error
from tiny import SMALL, random_inputs, vary

from sra_jax.models import DiT, Pass
from sra_jax.torch_weights import to_torch


@pytest.fixture(scope="module")
def differentiated(sit, sit_inputs):
    """From changes of the golden config to prediction and features, of a whole pass and of one
    stopped at block 3, and to the gradient through both in PyTorch's layout."""

    def compute(**changes):
        trunk = DiT(vary(sit.config, **changes))

        def loss(params, x, t, labels):
            inputs = params["trunk"], x, t, {"labels": labels}
            out = trunk.apply(*inputs, Pass(taps=(2,)))
            stopped = trunk.apply(*inputs, Pass(taps=(3,), stop_at=3))
            values = out.prediction, out.features[2], stopped.features[3]
            return sum(jnp.sum(jnp.sin(v)) for v in values), values

        gradient, values = jax.jit(jax.grad(loss, has_aux=True))(*sit_inputs)
        return values, to_torch({"trunk": gradient["trunk"], "method": {}}, sit.config)

    return compute


@pytest.fixture(scope="module")
def reference(differentiated):
    return differentiated()


@pytest.mark.parametrize(
    "change",
    [{"remat": "dots"}, {"remat": "full"}, {"scan_unroll": 3}],
    ids=str,
)
def test_remat_and_unrolling_change_no_number(differentiated, reference, change):
    values, gradient = differentiated(**change)
    expected_values, expected = reference
    for actual, value in zip(values, expected_values, strict=True):
        assert relative_error(actual, value) < ROUNDING
    for name, array in expected.items():
        if name == "pos_embed":
            assert not gradient[name].any() and not array.any()
        else:
            assert relative_error(gradient[name], array) < ROUNDING, name


def test_remat_saves_memory():
    config = vary(SMALL, side=16, depth=8)

    def temporaries(remat):
        trunk = DiT(vary(config, remat=remat))
        params = jax.eval_shape(trunk.init, jax.random.key(0))

        def loss(params, x, t, labels):
            return jnp.sum(trunk.apply(params, x, t, {"labels": labels}).prediction)

        lowered = jax.jit(jax.grad(loss)).lower(params, *random_inputs(config, 0, batch=8))
        return lowered.compile().memory_analysis().temp_size_in_bytes

    assert temporaries("full") < 0.7 * temporaries("dots") < 0.7 * 0.7 * temporaries("none")


def test_without_remat_only_matrix_products_are_kept():
    """Of each block and token: its input, 3 D of qkv, the weighted values, the projection, 4 D of
    the MLP's hidden layer and D of its output, and the scores of all heads."""
    batch, tokens, width, heads = 4, SMALL.layout.tokens, SMALL.width, SMALL.num_heads
    config = vary(SMALL, depth=8)
    trunk = DiT(config)
    params = jax.eval_shape(trunk.init, jax.random.key(0))
    x, t, labels = random_inputs(config, 0, batch=batch)

    def backward(params):
        return jax.vjp(lambda p: trunk.apply(p, x, t, {"labels": labels}).prediction, params)[1]

    kept = [leaf for leaf in jax.tree.leaves(jax.eval_shape(backward, params)) if leaf.size]
    activations = [leaf for leaf in kept if leaf.shape[:3] == (config.depth, batch, tokens)]
    activations += [leaf for leaf in kept if leaf.shape[:3] == (config.depth, batch, heads)]
    values = batch * tokens * (11 * width + heads * tokens)
    assert sum(leaf.size for leaf in activations) == config.depth * values


@pytest.mark.parametrize(("remat", "passes"), [("none", 1), ("dots", 2), ("full", 2)])
def test_cudnn_attention_is_a_product_too(monkeypatch, remat, passes):
    """Its primitives are traced as on a GPU; none is needed to see which are computed again."""
    cudnn = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(cudnn, "check_compute_capability", lambda capability: True)
    config = vary(SMALL, width=128, dtype="bfloat16", attention="cudnn", remat=remat)
    trunk, (x, t, labels) = DiT(config), random_inputs(config, 0, batch=2)
    params = jax.eval_shape(trunk.init, jax.random.key(0))

    def loss(params):
        return jnp.sum(trunk.apply(params, x, t, {"labels": labels}).prediction)

    program = str(jax.make_jaxpr(jax.grad(loss))(params))
    assert program.count("dot_product_attention_fwd_wrapper") == passes
    assert program.count("dot_product_attention_bwd_wrapper") == 1
