"""The trunk against the authors' numbers, and against a plain float64 forward written here."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import BFLOAT16, FEATURES, ROUNDING, Jitted, random_state_dict, relative_error
from scipy import special, stats

from sra_jax.errors import InputError
from sra_jax.models import DiffusionTransformer, TransformerConfig, init_params
from sra_jax.weights import from_torch, to_torch

SMALL = TransformerConfig(
    kind="sit",
    input_size=8,
    patch_size=2,
    in_channels=4,
    width=32,
    depth=3,
    num_heads=4,
    num_classes=10,
)


# Against the authors' code.


@pytest.fixture(scope="module")
def sit_inputs(sit):
    return sit.params("student"), sit.images("fwd/x"), sit["fwd/t"], sit.jax("fwd/y", jnp.int32)


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


def test_projected_feature_is_golden(sit, sit_model, sit_inputs, sit_output):
    feature = sit_output.features[sit.meta["student_block"]]
    projected = sit_model.project(sit_inputs[0], feature)
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
    width, patch, grid = config.width, config.patch_size, config.input_size // config.patch_size

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

    tokens = np.zeros((len(x), grid * grid, width))
    for row in range(grid):
        for column in range(grid):
            rows, columns = (slice(i * patch, (i + 1) * patch) for i in (row, column))
            pixels = x[:, rows, columns].astype(np.float64)
            tokens[:, row * grid + column] = np.einsum(
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
    channels = config.in_channels * {"sit": 1, "dit": 2}[config.kind]
    prediction = np.zeros((len(x), config.input_size, config.input_size, channels))
    for row in range(grid):
        for column in range(grid):
            rows, columns = (slice(i * patch, (i + 1) * patch) for i in (row, column))
            patches = values[:, row * grid + column].reshape(-1, patch, patch, channels)
            prediction[:, rows, columns] = patches
    projected = None
    if "ap_head.linear1.weight" in state:
        projected = linear("ap_head.linear2", silu(linear("ap_head.linear1", features[0])))
    return features, prediction, projected


SHAPES = {
    "sit, patch 2, one head": {"patch_size": 2, "width": 24, "depth": 2, "num_heads": 1},
    "sit, patch 4, six heads": {
        "patch_size": 4,
        "input_size": 16,
        "width": 48,
        "depth": 5,
        "num_heads": 6,
        "num_classes": 7,
    },
    "sit, patch 8, three channels": {
        "patch_size": 8,
        "input_size": 32,
        "in_channels": 3,
        "width": 64,
        "depth": 1,
        "num_heads": 8,
    },
    "dit, patch 2": {
        "kind": "dit",
        "patch_size": 2,
        "input_size": 6,
        "width": 40,
        "depth": 3,
        "num_heads": 5,
    },
    "dit, patch 4, one channel": {
        "kind": "dit",
        "patch_size": 4,
        "in_channels": 1,
        "width": 32,
        "depth": 2,
        "num_heads": 2,
        "mlp_ratio": 3,
    },
    "dit, patch 8, one token": {
        "kind": "dit",
        "patch_size": 8,
        "width": 32,
        "depth": 2,
        "num_heads": 2,
    },
}


def random_inputs(config, seed, batch=3):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(batch, config.input_size, config.input_size, config.in_channels))
    t = rng.uniform(size=batch) if config.kind == "sit" else rng.integers(0, 1000, batch)
    labels = np.append(rng.integers(0, config.num_classes, batch - 1), config.num_classes)
    dtype = np.float32 if config.kind == "sit" else np.int32
    return x.astype(np.float32), t.astype(dtype), labels.astype(np.int32)


@pytest.mark.parametrize("head", [True, False], ids=["head", "no head"])
@pytest.mark.parametrize("shape", SHAPES)
def test_forward_agrees_with_a_plain_one(shape, head):
    config = dataclasses.replace(SMALL, **SHAPES[shape])
    state = random_state_dict(config, seed=1, head=head)
    inputs = random_inputs(config, seed=2)
    features, prediction, projected = plain_forward(state, config, *inputs)
    model, params = Jitted(config), from_torch(state, config)
    out = model(params, *inputs, taps="all")
    assert relative_error(out.prediction, prediction) < FEATURES
    for k, feature in enumerate(features, start=1):
        assert relative_error(out.features[k], feature) < FEATURES, f"block {k}"
    if head:
        assert relative_error(model.project(params, out.features[1]), projected) < FEATURES


# How it computes does not change what it computes.


@pytest.mark.parametrize("shape", ["sit, patch 4, six heads", "dit, patch 2"])
def test_bfloat16_stays_near_float32(shape):
    config = dataclasses.replace(SMALL, **SHAPES[shape])
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
    projected = [m.project(params, exact.features[1]) for m in (half_model, exact_model)]
    assert relative_error(*projected) < BFLOAT16


def test_bfloat16_of_the_golden_model_stays_near_float32(sit, sit_inputs):
    half = Jitted(dataclasses.replace(sit.config, dtype="bfloat16"))(*sit_inputs, taps="all")
    assert relative_error(half.prediction, sit.images("fwd/velocity")) < BFLOAT16
    for k, feature in half.features.items():
        assert relative_error(feature, sit[f"fwd/block_{k:02}"]) < BFLOAT16


@pytest.fixture(scope="module")
def differentiated(sit, sit_inputs):
    """From changes of the golden config to prediction and features, of a whole pass and of one
    stopped at block 3, and to the gradient through both in PyTorch's layout."""

    def compute(**changes):
        model = DiffusionTransformer(dataclasses.replace(sit.config, **changes))

        def loss(params, x, t, labels):
            out = model.apply({"params": params}, x, t, labels, taps=(2,))
            stopped = model.apply({"params": params}, x, t, labels, taps=(3,), stop_at=3)
            values = out.prediction, out.features[2], stopped.features[3]
            return sum(jnp.sum(jnp.sin(v)) for v in values), values

        gradient, values = jax.jit(jax.grad(loss, has_aux=True))(*sit_inputs)
        return values, to_torch({k: v for k, v in gradient.items() if k != "head"}, sit.config)

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
    config = dataclasses.replace(SMALL, input_size=16, depth=8)

    def temporaries(remat):
        model = DiffusionTransformer(dataclasses.replace(config, remat=remat))
        params = jax.eval_shape(partial(init_params, model, head=False), jax.random.key(0))

        def loss(params, *inputs):
            return jnp.sum(model.apply({"params": params}, *inputs).prediction)

        lowered = jax.jit(jax.grad(loss)).lower(params, *random_inputs(config, 0, batch=8))
        return lowered.compile().memory_analysis().temp_size_in_bytes

    assert temporaries("full") < 0.7 * temporaries("dots") < 0.7 * 0.7 * temporaries("none")


def test_without_remat_only_matrix_products_are_kept():
    """Of each block and token: its input, 3 D of qkv, the weighted values, the projection, 4 D of
    the MLP's hidden layer and D of its output, and the scores of all heads."""
    batch, tokens, width, heads = 4, SMALL.num_tokens, SMALL.width, SMALL.num_heads
    config = dataclasses.replace(SMALL, depth=8)
    model = DiffusionTransformer(config)
    params = jax.eval_shape(partial(init_params, model, head=False), jax.random.key(0))
    inputs = random_inputs(config, 0, batch=batch)

    def backward(params):
        return jax.vjp(lambda p: model.apply({"params": p}, *inputs).prediction, params)[1]

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
    config = dataclasses.replace(SMALL, width=128, dtype="bfloat16", attention="cudnn", remat=remat)
    model, inputs = DiffusionTransformer(config), random_inputs(config, 0, batch=2)
    params = jax.eval_shape(partial(init_params, model, head=False), jax.random.key(0))

    def loss(params):
        return jnp.sum(model.apply({"params": params}, *inputs).prediction)

    program = str(jax.make_jaxpr(jax.grad(loss))(params))
    assert program.count("dot_product_attention_fwd_wrapper") == passes
    assert program.count("dot_product_attention_bwd_wrapper") == 1


# Initialisation.


@pytest.fixture(scope="module")
def fresh():
    config = dataclasses.replace(SMALL, width=64, depth=4, num_classes=500)
    model = Jitted(config)
    return model, jax.jit(partial(init_params, model.module, head=True))(jax.random.key(5))


@pytest.mark.parametrize(
    ("path", "fan_in", "fan_out"),
    [
        ("patch_embed/kernel", 16, 64),
        ("blocks/attention/qkv/kernel", 64, 3 * 64),
        ("blocks/attention/proj/kernel", 64, 64),
        ("blocks/mlp/fc1/kernel", 64, 256),
        ("blocks/mlp/fc2/kernel", 256, 64),
        ("head/fc1/kernel", 64, 128),
        ("head/fc2/kernel", 128, 64),
    ],
)
def test_linear_weights_start_xavier_uniform(fresh, path, fan_in, fan_out):
    weights = leaf(fresh[1], path)
    bound = np.sqrt(6 / (fan_in + fan_out))
    assert np.abs(weights).max() <= bound * (1 + 1e-6)
    assert np.abs(weights).max() > 0.995 * bound
    uniform = stats.uniform(-bound, 2 * bound)
    assert stats.kstest(weights.ravel(), uniform.cdf).pvalue > 0.01


@pytest.mark.parametrize(
    "path", ["label_embed/embedding", "time_embed/fc1/kernel", "time_embed/fc2/kernel"]
)
def test_embeddings_start_normal(fresh, path):
    weights = leaf(fresh[1], path)
    assert stats.kstest(weights.ravel(), stats.norm(0, 0.02).cdf).pvalue > 0.01


def test_biases_modulation_and_output_start_at_zero(fresh):
    leaves = jax.tree_util.tree_leaves_with_path(fresh[1])
    names = {"/".join(key.key for key in path): np.asarray(array) for path, array in leaves}
    zero = {name for name in names if name.endswith("bias") or "modulation" in name}
    zero |= {"final/linear/kernel"}
    assert len(zero) == 1 + 2 + 4 + 2 + 2 + 2 + 2  # patches, time, block, head, two, final's
    assert {name for name, array in names.items() if not array.any()} == zero


def test_parameters_are_float32_and_blocks_differ(fresh):
    _, params = fresh
    assert all(array.dtype == jnp.float32 for array in jax.tree.leaves(params))
    for path in ("attention/qkv", "attention/proj", "mlp/fc1", "mlp/fc2"):
        kernels = leaf(params["blocks"], f"{path}/kernel").reshape(4, -1)
        assert np.abs(np.corrcoef(kernels) - np.eye(4)).max() < 5 / np.sqrt(kernels.shape[1])


def test_fresh_blocks_are_the_identity_and_predict_zero(fresh):
    model, params = fresh
    out = model(params, *random_inputs(model.config, seed=6), taps="all")
    assert not np.asarray(out.prediction).any()
    assert np.asarray(out.features[1]).std() > 0.1
    np.testing.assert_array_equal(out.features[1], out.features[4])


@pytest.mark.parametrize(("grid", "width"), [(4, 32), (16, 48), (1, 8)])
def test_position_table(grid, width):
    config = dataclasses.replace(SMALL, input_size=2 * grid, width=width, num_heads=2)
    init = partial(init_params, DiffusionTransformer(config), head=False)
    table = jax.jit(lambda key: init(key)["pos_embed"])(jax.random.key(0))
    quarter = width // 4
    expected = np.zeros((grid * grid, width))
    for y in range(grid):
        for x in range(grid):
            for i in range(quarter):
                frequency = 1 / 10000 ** (i / quarter)
                halves = zip((0, 2), (x, y), strict=True)
                for part, place in halves:
                    expected[y * grid + x, part * quarter + i] = np.sin(place * frequency)
                    expected[y * grid + x, (part + 1) * quarter + i] = np.cos(place * frequency)
    np.testing.assert_allclose(table, expected, atol=1e-7)


@pytest.mark.parametrize("kind", ["sit", "dit"])
def test_head_is_made_only_when_asked(kind):
    model = Jitted(dataclasses.replace(SMALL, kind=kind))
    init = jax.jit(partial(init_params, model.module), static_argnames="head")
    with_head, without = (init(jax.random.key(0), head=head) for head in (True, False))
    assert "head" not in without
    assert jax.tree.map(jnp.shape, with_head.pop("head")) == {
        "fc1": {"kernel": (32, 64), "bias": (64,)},
        "fc2": {"kernel": (64, 32), "bias": (32,)},
    }
    jax.tree.map(np.testing.assert_array_equal, with_head, without)
    out = model(without, *random_inputs(model.config, seed=7), taps=(2,))
    assert out.prediction.shape == (3, 8, 8, 4 if kind == "sit" else 8)
    assert out.features[2].shape == (3, 16, 32)


# Bad input.


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"patch_size": 3}, ["patch size 3", "input size 8"]),
        ({"kind": "sitt"}, ["'sitt'", "did you mean 'sit'"]),
        ({"dtype": "bfloat"}, ["'bfloat'", "did you mean 'bfloat16'"]),
        ({"remat": "ful"}, ["'ful'", "did you mean 'full'"]),
        ({"attention": "flash"}, ["'flash'", "xla, cudnn"]),
        ({"num_heads": 5}, ["width 32", "5 heads"]),
        ({"width": 30, "num_heads": 3}, ["width 30", "4"]),
        ({"depth": 0}, ["depth is 0"]),
        ({"in_channels": -1}, ["in_channels is -1"]),
        ({"patch_size": 0}, ["patch_size is 0"]),
        ({"num_heads": 0}, ["num_heads is 0"]),
        ({"num_classes": 0}, ["num_classes is 0"]),
        ({"mlp_ratio": 0}, ["mlp_ratio is 0"]),
        ({"scan_unroll": 0}, ["scan_unroll is 0"]),
    ],
    ids=str,
)
def test_bad_config_is_named_in_one_line(changes, words):
    with pytest.raises(InputError) as error:
        dataclasses.replace(SMALL, **changes)
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
        ({"t": ()}, ["times ()", "(2,)"]),
        ({"t": (3,)}, ["times (3,)"]),
        ({"labels": (2, 1)}, ["labels (2, 1)"]),
        ({"labels": (1,)}, ["labels (1,)"]),
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
    model = DiffusionTransformer(SMALL)
    params = jax.eval_shape(partial(init_params, model, head=False), jax.random.key(0))
    given = GOOD | changes
    x, t = (jnp.zeros(given[name]) for name in ("x", "t"))
    labels = jnp.zeros(given["labels"], jnp.int32)
    options = {name: given[name] for name in ("taps", "stop_at") if name in given}
    with pytest.raises(InputError) as error:
        jax.eval_shape(lambda p: model.apply({"params": p}, x, t, labels, **options), params)
    assert_one_line(error, words)


def assert_one_line(error, words):
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def leaf(tree, path):
    for name in path.split("/"):
        tree = tree[name]
    return np.asarray(tree)
