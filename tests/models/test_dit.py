"""The trunk against the authors' numbers, and against a plain float64 forward written here."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import BFLOAT16, FEATURES, Jitted, random_state_dict, relative_error
from golden_kinds.sit import project
from scipy import special
from tiny import SMALL, random_inputs, vary

from sra_jax.core.errors import InputError
from sra_jax.models import DiT, LatentLayout, Pass
from sra_jax.torch_weights import from_torch

# Against the authors' code.


@pytest.fixture(scope="module")
def dit_inputs(dit):
    t, labels = dit.jax("fwd/t", jnp.int32), dit.jax("fwd/y", jnp.int32)
    return dit.params("student"), dit.images("fwd/x"), t, labels


@pytest.fixture(scope="module")
def sit_output(sit_model, sit_inputs):
    return sit_model(*sit_inputs, taps="all")


def test_features_of_every_block_are_golden(sit, sit_output):
    assert sorted(sit_output.features) == [1, 2, 3, 4]
    for k, feature in sit_output.features.items():
        assert relative_error(feature, sit[f"fwd/block_{k:02}"]) < FEATURES, f"block {k}"


def test_velocity_is_golden(sit, sit_output):
    assert relative_error(sit_output.prediction, sit.images("fwd/velocity")) < FEATURES


def test_projected_feature_is_golden(sit, sit_inputs, sit_output):
    feature = sit_output.features[sit.meta["student_block"]]
    projected = project(sit_inputs[0], feature)
    assert relative_error(projected, sit["fwd/projected"]) < FEATURES


def test_dit_output_and_feature_are_golden(dit, dit_model, dit_inputs):
    block = dit.meta["student_block"]
    out = dit_model(*dit_inputs, taps=(block,))
    assert out.prediction.shape == (4, 8, 8, 8)
    assert relative_error(out.prediction, dit.images("fwd/output")) < FEATURES
    assert relative_error(out.features[block], dit["fwd/block_student"]) < FEATURES


@pytest.mark.parametrize(
    ("taps", "stop_at", "blocks"),
    [
        ((2,), None, [2]),
        ((4, 1, 1), None, [1, 4]),
        ((3,), 3, [3]),
        ((1,), 2, [1]),
        ("all", 3, [1, 2, 3]),
        ((1,), 1, [1]),
        ((), 2, []),
        ((3,), 4, [3]),
    ],
)
def test_every_way_to_tap_gives_the_same_features(
    sit, sit_model, sit_inputs, taps, stop_at, blocks
):
    out = sit_model(*sit_inputs, taps=taps, stop_at=stop_at)
    assert sorted(out.features) == blocks
    for k in blocks:
        assert relative_error(out.features[k], sit[f"fwd/block_{k:02}"]) < FEATURES
    if stop_at is not None:
        assert out.prediction is None
    else:
        assert relative_error(out.prediction, sit.images("fwd/velocity")) < FEATURES


# Against a plain forward in float64, on weights and shapes of its own.


def plain_forward(state, config, x, t, labels):
    """Features of every block [B, N, D], the prediction [B, H, W, C], and the head on block 1 (None
    without one), from PyTorch's state dict: one matrix product at a time, in float64."""
    state = {name: array.astype(np.float64) for name, array in state.items()}
    width, patch, (rows, columns) = config.width, config.layout.patch, config.layout.grid

    def linear(name, h):
        return h @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def silu(h):
        return h * special.expit(h)

    def normalise(h):
        return (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1e-6)

    def modulate(h, shift, scale):
        return normalise(h) * (1 + scale[:, None]) + shift[:, None]

    def attend(name, h):
        heads = []
        q, k, v = np.split(linear(f"{name}.qkv", h), 3, axis=-1)
        for head in range(config.num_heads):
            size = width // config.num_heads
            mine = slice(head * size, (head + 1) * size)
            scores = q[..., mine] @ k[..., mine].swapaxes(1, 2) / np.sqrt(size)
            heads.append(special.softmax(scores, axis=-1) @ v[..., mine])
        return linear(f"{name}.proj", np.concatenate(heads, -1))

    def gelu(h):
        return 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))

    tokens = np.zeros((len(x), rows * columns, width))
    for row in range(rows):
        for column in range(columns):
            down, across = (slice(i * patch, (i + 1) * patch) for i in (row, column))
            pixels = x[:, down, across].astype(np.float64)
            tokens[:, row * columns + column] = np.einsum(
                "bpqc,dcpq->bd", pixels, state["x_embedder.proj.weight"]
            )
    tokens = tokens + state["x_embedder.proj.bias"] + state["pos_embed"]

    # The angles are float32, as in the releases: DiT's times reach 999, and lose digits there.
    frequencies = np.exp(np.float32(-np.log(10000) / 128) * np.arange(128, dtype=np.float32))
    angles = (np.float32(t)[:, None] * frequencies).astype(np.float64)
    c = linear("t_embedder.mlp.0", np.concatenate([np.cos(angles), np.sin(angles)], 1))
    c = linear("t_embedder.mlp.2", silu(c)) + state["y_embedder.embedding_table.weight"][labels]

    features = []
    for i in range(config.depth):
        name = f"blocks.{i}"
        modulation = np.split(linear(f"{name}.adaLN_modulation.1", silu(c)), 6, axis=-1)
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation
        h = attend(f"{name}.attn", modulate(tokens, shift1, scale1))
        tokens = tokens + gate1[:, None] * h
        h = gelu(linear(f"{name}.mlp.fc1", modulate(tokens, shift2, scale2)))
        tokens = tokens + gate2[:, None] * linear(f"{name}.mlp.fc2", h)
        features.append(tokens)

    shift, scale = np.split(linear("final_layer.adaLN_modulation.1", silu(c)), 2, axis=-1)
    values = linear("final_layer.linear", modulate(tokens, shift, scale))
    channels = config.layout.channels * config.outputs
    prediction = np.zeros((*x.shape[:3], channels))
    for row in range(rows):
        for column in range(columns):
            down, across = (slice(i * patch, (i + 1) * patch) for i in (row, column))
            patches = values[:, row * columns + column].reshape(-1, patch, patch, channels)
            prediction[:, down, across] = patches
    projected = None
    if "ap_head.linear1.weight" in state:
        projected = linear("ap_head.linear2", silu(linear("ap_head.linear1", features[0])))
    return features, prediction, projected


SHAPES = {
    "sit, patch 2, one head": {"patch": 2, "width": 24, "depth": 2, "num_heads": 1},
    "sit, patch 4, six heads": {
        "patch": 4,
        "side": 16,
        "width": 48,
        "depth": 5,
        "num_heads": 6,
        "num_classes": 7,
    },
    "sit, patch 8, three channels": {
        "patch": 8,
        "side": 32,
        "channels": 3,
        "width": 64,
        "depth": 1,
        "num_heads": 8,
    },
    "dit, patch 2": {
        "kind": "dit",
        "patch": 2,
        "side": 6,
        "width": 40,
        "depth": 3,
        "num_heads": 5,
    },
    "dit, patch 4, one channel": {
        "kind": "dit",
        "patch": 4,
        "channels": 1,
        "width": 32,
        "depth": 2,
        "num_heads": 2,
        "mlp_ratio": 3,
    },
    "sit, a latent that is not square": {
        "layout": LatentLayout(4, 10, 3, patch=2),
        "width": 24,
        "depth": 2,
        "num_heads": 2,
    },
    "dit, patch 8, one token": {
        "kind": "dit",
        "patch": 8,
        "width": 32,
        "depth": 2,
        "num_heads": 2,
    },
}


@pytest.mark.parametrize("head", [True, False], ids=["head", "no head"])
@pytest.mark.parametrize("shape", SHAPES)
def test_forward_agrees_with_a_plain_one(shape, head):
    config = vary(SMALL, **SHAPES[shape])
    state = random_state_dict(config, seed=1, head=head)
    inputs = random_inputs(config, seed=2)
    features, prediction, projected = plain_forward(state, config, *inputs)
    model, params = Jitted(config), from_torch(state, config)
    out = model(params, *inputs, taps="all")
    assert relative_error(out.prediction, prediction) < FEATURES
    for k, feature in enumerate(features, start=1):
        assert relative_error(out.features[k], feature) < FEATURES, f"block {k}"
    if head:
        assert relative_error(project(params, out.features[1]), projected) < FEATURES


# How it computes does not change what it computes.


@pytest.mark.parametrize("shape", ["sit, patch 4, six heads", "dit, patch 2"])
def test_bfloat16_stays_near_float32(shape):
    config = vary(SMALL, **SHAPES[shape])
    params = from_torch(random_state_dict(config, seed=3, head=True), config)
    inputs = random_inputs(config, seed=4)
    exact_model = Jitted(config)
    half_model = Jitted(dataclasses.replace(config, dtype="bfloat16"))
    exact, half = (model(params, *inputs, taps="all") for model in (exact_model, half_model))
    assert half.prediction.dtype == jnp.float32
    assert all(feature.dtype == jnp.bfloat16 for feature in half.features.values())
    assert 1e-4 < relative_error(half.prediction, exact.prediction) < BFLOAT16
    for k, feature in exact.features.items():
        assert relative_error(half.features[k], feature) < BFLOAT16
    feature = exact.features[1]
    projected = [project(params, f) for f in (feature.astype(jnp.bfloat16), feature)]
    assert projected[0].dtype == jnp.bfloat16
    assert relative_error(*projected) < BFLOAT16


def test_bfloat16_of_the_golden_model_stays_near_float32(sit, sit_inputs):
    half = Jitted(dataclasses.replace(sit.config, dtype="bfloat16"))(*sit_inputs, taps="all")
    assert relative_error(half.prediction, sit.images("fwd/velocity")) < BFLOAT16
    for k, feature in half.features.items():
        assert relative_error(feature, sit[f"fwd/block_{k:02}"]) < BFLOAT16


# Bad input.


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"patch": 3}, ["patch size 3", "side 8"]),
        ({"dtype": "bfloat"}, ["'bfloat'", "did you mean 'bfloat16'"]),
        ({"remat": "ful"}, ["'ful'", "did you mean 'full'"]),
        ({"attention": "flash"}, ["'flash'", "xla, cudnn"]),
        ({"num_heads": 5}, ["width 32", "5 heads"]),
        ({"width": 30, "num_heads": 3}, ["width 30", "4"]),
        ({"depth": 0}, ["depth is 0"]),
        ({"channels": -1}, ["channels is -1"]),
        ({"patch": 0}, ["patch is 0"]),
        ({"outputs": 0}, ["outputs is 0"]),
        ({"num_heads": 0}, ["num_heads is 0"]),
        ({"num_classes": 0}, ["num_classes is 0"]),
        ({"mlp_ratio": 0}, ["mlp_ratio is 0"]),
        ({"scan_unroll": 0}, ["scan_unroll is 0"]),
    ],
    ids=str,
)
def test_bad_config_is_named_in_one_line(changes, words):
    with pytest.raises(InputError) as error:
        vary(SMALL, **changes)
    assert_one_line(error, words)


GOOD = {"x": (2, 8, 8, 4), "t": (2,), "labels": (2,)}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"x": (2, 4, 8, 8)}, ["(2, 4, 8, 8)", "[B, 8, 8, 4]", "channels last"]),
        ({"x": (2, 8, 8, 3)}, ["(2, 8, 8, 3)"]),
        ({"x": (2, 16, 16, 4)}, ["(2, 16, 16, 4)"]),
        ({"x": (8, 8, 4)}, ["(8, 8, 4)"]),
        ({"x": ()}, ["()"]),
        ({"t": ()}, ["times", "()", "(2,)"]),
        ({"t": (3,)}, ["times", "(3,)"]),
        ({"labels": (2, 1)}, ["labels", "(2, 1)"]),
        ({"labels": (1,)}, ["labels", "(1,)"]),
        ({"taps": (4,)}, ["block 4", "1 to 3"]),
        ({"taps": (0,)}, ["block 0"]),
        ({"taps": (3,), "stop_at": 2}, ["block 3", "1 to 2"]),
        ({"taps": "al"}, ["'al'", "did you mean 'all'"]),
        ({"stop_at": 4}, ["stop_at=4", "1 to 3"]),
        ({"stop_at": 0}, ["stop_at=0"]),
    ],
    ids=str,
)
def test_bad_input_is_named_in_one_line(changes, words):
    trunk, given = DiT(SMALL), GOOD | changes
    params = jax.eval_shape(trunk.init, jax.random.key(0))
    x, t = (jnp.zeros(given[name]) for name in ("x", "t"))
    condition = {"labels": jnp.zeros(given["labels"], jnp.int32)}
    how = Pass(**{name: given[name] for name in ("taps", "stop_at") if name in given})
    with pytest.raises(InputError) as error:
        jax.eval_shape(lambda p: trunk.apply(p, x, t, condition, how), params)
    assert_one_line(error, words)


def test_sizes_are_those_that_methods_ask_for():
    sizes = DiT(vary(SMALL, dtype="bfloat16")).sizes
    assert sizes == (SMALL.layout, 32, 3, jnp.bfloat16)
    assert sizes.layout.tokens == 16


def assert_one_line(error, words):
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message
