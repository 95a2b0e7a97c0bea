"""Passes that route tokens or run them in groups, against the releases that do so by other means.

TREAD's release scatters tokens back and Self-Flow's masks attention; both are golden files.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import FEATURES, Golden, relative_error
from tiny import SMALL, random_inputs

from sra_jax.core.errors import InputError
from sra_jax.models import DiT, Groups, Pass, Route


@pytest.fixture(scope="module")
def dts():
    return Golden("dts")


@pytest.fixture(scope="module")
def tread():
    return Golden("tread")


def run(golden, params, x, t, labels, make_pass):
    """The output; `make_pass` is called while the pass is traced."""
    trunk = DiT(golden.config)
    return jax.jit(lambda p: trunk.apply(p, x, t, {"labels": labels}, make_pass()))(params["trunk"])


@pytest.mark.parametrize("config", ["dts_as", "dts", "as", "self_flow_as", "three_groups"])
@pytest.mark.parametrize("who", ["student", "teacher"])
def test_groups_are_those_of_the_release(dts, config, who):
    ids, times = dts[f"{config}/group_ids"], dts[f"{config}/{who}_time_tokens"]
    counts = tuple(np.bincount(ids[0]).tolist())
    first = [np.argmax(ids == k, axis=1) for k in range(len(counts))]  # a token of each group
    t = np.stack([times[np.arange(len(times)), token] for token in first], axis=1)
    groups = Groups(jnp.asarray(ids), counts, f"{config}/{who}_attention_mask" in dts)
    block = dts.meta[f"{who}_block"]
    out = run(
        dts,
        dts.params(who),
        dts.images(f"{config}/{who}_latents"),
        t,
        dts.jax(f"{config}/{who}_labels", jnp.int32),
        lambda: Pass((block,), None if who == "student" else block, groups=groups),
    )
    assert relative_error(out.features[block], dts[f"{config}/{who}_feature"]) < FEATURES
    if who == "student":
        assert relative_error(out.prediction, dts.images(f"{config}/velocity")) < FEATURES


def test_a_route_is_that_of_the_release(tread):
    route = tread.meta["routes"][0]
    first, last = route["start_layer_idx"] + 1, route["end_layer_idx"] + 1
    keep = tread.jax("fwd/train/ids_keep_0", jnp.int32)
    labels = tread.jax("fwd/y", jnp.int32)
    out = run(
        tread,
        tread.params("student"),
        tread.images("fwd/x"),
        tread["fwd/t"],
        labels,
        lambda: Pass((1, 5), route=Route(first, last, keep)),
    )
    assert relative_error(out.prediction, tread.images("fwd/train/velocity")) < FEATURES
    for block in (1, 5):
        assert relative_error(out.features[block], tread[f"fwd/train/block_{block:02}"]) < FEATURES


@pytest.fixture(scope="module")
def small():
    """A trunk with random parameters, and its inputs."""
    trunk = DiT(SMALL)
    params = jax.jit(trunk.init)(jax.random.key(0))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda a: a + 0.1 * rng.normal(size=a.shape).astype("f"), params)
    x, t, labels = random_inputs(SMALL, seed=1)
    return trunk, params, (x, t, {"labels": labels})


def test_all_tokens_on_the_route_are_the_whole_pass(small):
    trunk, params, inputs = small
    keep = jnp.tile(jax.random.permutation(jax.random.key(1), SMALL.layout.tokens), (3, 1))
    whole = jax.jit(lambda p: trunk.apply(p, *inputs, Pass((1, 3))))(params)
    routed = jax.jit(lambda p: trunk.apply(p, *inputs, Pass((1, 3), route=Route(2, 2, keep))))(
        params
    )
    assert relative_error(routed.prediction, whole.prediction) < FEATURES
    for k in (1, 3):
        assert relative_error(routed.features[k], whole.features[k]) < FEATURES


def test_groups_of_one_time_are_the_whole_pass(small):
    trunk, params, (x, t, condition) = small
    tokens = SMALL.layout.tokens
    ids = jnp.tile(jnp.arange(tokens) % 4 // 3, (3, 1))  # every fourth token in group 1
    groups = Groups(ids, (3 * tokens // 4, tokens // 4), False)
    times = jnp.stack([t, t], 1)
    whole = jax.jit(lambda p: trunk.apply(p, x, t, condition, Pass("all")))(params)
    split = jax.jit(lambda p: trunk.apply(p, x, times, condition, Pass("all", groups=groups)))(
        params
    )
    assert relative_error(split.prediction, whole.prediction) < FEATURES
    for k, feature in whole.features.items():
        assert relative_error(split.features[k], feature) < FEATURES


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"route": Route(0, 2, None)}, "route from block 0 to 2"),
        ({"route": Route(2, 4, None)}, "route from block 2 to 4, expected within 1 to 3"),
        ({"route": Route(3, 2, None)}, "route from block 3 to 2"),
        ({"taps": (2,), "route": Route(2, 3, None)}, "blocks [2] lie in the route"),
        ({"groups": Groups(None, (3, 4), False)}, "groups of (3, 4) tokens, expected 16"),
        (
            {"route": Route(1, 2, None), "groups": Groups(None, (8, 8), False)},
            "a route and groups do not go together",
        ),
    ],
    ids=str,
)
def test_passes_that_cannot_run_are_refused(small, how, words):
    trunk, params, (x, t, condition) = small
    t = jnp.stack([t, t], 1) if "groups" in how else t
    with pytest.raises(InputError) as error:
        jax.eval_shape(lambda p: trunk.apply(p, x, t, condition, Pass(**how)), params)
    assert words in str(error.value)
