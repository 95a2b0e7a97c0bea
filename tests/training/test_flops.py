"""What a step costs, counted in its program; nothing is executed."""

import dataclasses
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from tiny import OUTPUTS, TINY, make_batch, make_objective, vary

from sra_jax.methods import SRA, Terms
from sra_jax.models import SIZES
from sra_jax.models.layers import Block
from sra_jax.training.flops import count_flops, step_flops
from sra_jax.training.optimizer import OptimizerConfig, make_optimizer
from sra_jax.training.state import init_state
from sra_jax.training.step import StepConfig, make_train_step


def step_and_state(objective):
    """The train step, and the shapes of its state."""
    optimizer = make_optimizer(OptimizerConfig())
    state = jax.eval_shape(partial(init_state, objective, optimizer, seed=0))
    return make_train_step(objective, optimizer, StepConfig()), state


def whole_step_flops(objective, batch):
    """Operations of the train step itself, with all that is not the objective."""
    return count_flops(*step_and_state(objective), jax.eval_shape(lambda: batch))


def block_flops(config, batch):
    block = Block(config.num_heads, config.mlp_ratio, jnp.float32, "xla")
    tokens = jax.ShapeDtypeStruct((batch, config.layout.tokens, config.width), jnp.float32)
    c = jax.ShapeDtypeStruct((batch, config.width), jnp.float32)
    params = jax.eval_shape(block.init, jax.random.key(0), tokens, c)
    return count_flops(block.apply, params, tokens, c)


@pytest.mark.parametrize("kind", OUTPUTS)
@pytest.mark.parametrize("name", SIZES)
def test_alignment_costs_one_partial_forward_pass(name, kind):
    batch_size = 2
    recipe = SRA.recipe("paper", name, OUTPUTS[kind], 256)
    config = vary(
        TINY, kind=kind, side=32, patch=2, channels=4, num_classes=1000, **SIZES[name]._asdict()
    )
    batch = make_batch(batch_size, config)
    plain = whole_step_flops(make_objective(config, None), batch)
    aligned = whole_step_flops(make_objective(config, SRA(**recipe)), batch)
    block = block_flops(config, batch_size)
    head = 2 * 4 * config.width**2 * config.layout.tokens * batch_size
    forward_and_backward = 3 * config.depth * block
    promised = forward_and_backward + recipe["teacher_block"] * block + 3 * head
    promised /= forward_and_backward
    assert 0.99 * promised < aligned / plain < 1.01 * promised
    assert 0.98 < plain / forward_and_backward < 1.02


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
@pytest.mark.parametrize("head", [True, False], ids=["head", "no head"])
@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_the_objectives_count_is_that_of_the_step(remat, head, fraction):
    """For one image: the count for a batch of two, halved."""
    plain = vary(TINY, kind="dit", side=32, patch=2, width=768, num_heads=6, depth=4)
    config = dataclasses.replace(plain, remat=remat)
    method = SRA(student_block=1, teacher_block=3, head=head, teacher_fraction=fraction)
    flops = step_flops(make_objective(plain, method), make_objective(config, method))
    per_image = whole_step_flops(make_objective(config, method), make_batch(2, config)) / 2
    assert abs(flops.total / per_image - 1) < 0.01
    assert flops.useful == flops.forward + flops.backward
    assert (flops.recomputed > 0) == (remat != "none")


@pytest.mark.parametrize("size", SIZES)
def test_a_plain_step_is_three_forward_passes(size):
    """All but the patches' gradient in the latents, and the constants' own."""
    config = vary(TINY, side=32, patch=2, channels=4, **SIZES[size]._asdict())
    objective = make_objective(config, None)
    flops = step_flops(objective, objective)
    assert 0.99 < flops.useful / (3 * flops.forward) <= 1
    assert flops.recomputed == 0


def test_operations_are_those_that_xla_counts():
    """XLA counts a scanned body once, so the scan is unrolled; it counts elementwise work too,
    which this width makes small."""
    config = vary(TINY, side=16, patch=2, width=256, num_heads=4, depth=2, scan_unroll=2)
    batch, objective = make_batch(16, config), make_objective(config)
    step, state = step_and_state(objective)
    compiled = jax.jit(step).lower(state, batch).compile()
    ratio = compiled.cost_analysis()["flops"] / whole_step_flops(objective, batch)
    assert abs(ratio - 1) < 0.02


def test_products_are_two_operations_a_multiply_add():
    shape = jax.ShapeDtypeStruct
    a, b = shape((3, 5, 7), jnp.float32), shape((3, 7, 2), jnp.float32)
    assert count_flops(jnp.matmul, a, b) == 2 * 3 * 5 * 7 * 2
    assert count_flops(jnp.add, a, a) == 0
    assert count_flops(jax.jit(jax.checkpoint(jnp.matmul)), a, b) == 2 * 3 * 5 * 7 * 2

    def scanned(a):
        return jax.lax.scan(lambda x, _: (x @ x, None), a, length=6)[0]

    assert count_flops(scanned, shape((4, 4), jnp.float32)) == 6 * 2 * 4**3


@pytest.mark.parametrize(
    ("image", "kernel", "options", "multiply_adds"),
    [
        # output places * output channels * kernel places * input channels of a group
        ((2, 9, 9, 3), (3, 3, 3, 5), {"padding": "VALID"}, 2 * 7 * 7 * 5 * 9 * 3),
        ((2, 8, 8, 3), (3, 3, 3, 5), {"padding": "SAME"}, 2 * 8 * 8 * 5 * 9 * 3),
        (
            (1, 8, 8, 4),
            (2, 2, 4, 6),
            {"padding": "VALID", "window_strides": (2, 2)},
            1 * 4 * 4 * 6 * 4 * 4,
        ),
        (
            (1, 8, 8, 4),
            (3, 3, 1, 8),
            {"padding": "SAME", "feature_group_count": 4},
            1 * 8 * 8 * 8 * 9 * 1,
        ),
    ],
    ids=["valid", "same", "strided", "grouped"],
)
def test_convolutions_are_counted(image, kernel, options, multiply_adds):
    strides = options.pop("window_strides", (1, 1))

    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, strides, dimension_numbers=("NHWC", "HWIO", "NHWC"), **options
        )

    shapes = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (image, kernel))
    assert count_flops(convolve, *shapes) == 2 * multiply_adds


@pytest.mark.parametrize("name", ["while", "cond"])
def test_programs_whose_length_is_not_known_are_refused(name):
    functions = {
        "while": lambda x: jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x @ x, x),
        "cond": lambda x: jax.lax.cond(x.sum() < 9, lambda x: x @ x, lambda x: x, x),
    }
    with pytest.raises(ValueError, match=name):
        count_flops(functions[name], jax.ShapeDtypeStruct((4, 4), jnp.float32))


def test_a_methods_own_products_are_counted():
    """Forward once, backward twice; what is computed of frozen arrays, forward alone."""

    class Product(SRA):
        def init(self, key, sizes):
            return {"kernel": jnp.zeros((16, 32))}

        def terms(self, nets, process, example, out):
            trained = out.features[self.student_block] @ nets.params["kernel"]
            frozen = jnp.ones((64, 16)) @ jnp.ones((16, 128))
            loss = trained.mean((1, 2)) * (1 + frozen.mean())
            return Terms({"product": loss})

    plain, more = (
        step_flops(objective, objective)
        for objective in (
            make_objective(method=None),
            make_objective(method=Product(student_block=3, teacher_block=3)),
        )
    )
    trained, frozen = 2 * TINY.layout.tokens * 16 * 32, 2 * 64 * 16 * 128
    assert more.forward - plain.forward == trained + frozen
    assert more.useful - plain.useful == 3 * trained + frozen


@pytest.fixture
def compiling_anew():
    """Nothing is taken from what was compiled before."""
    directory = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()  # or it goes on
    yield
    jax.config.update("jax_compilation_cache_dir", directory)
    compilation_cache.reset_cache()


@pytest.mark.slow
def test_compile_time_does_not_grow_with_depth(compiling_anew):
    """Blocks are scanned: 28 compile as fast as 12, within 20 %, by the median of five each."""

    def seconds(depth):
        config = vary(TINY, depth=depth, width=384, num_heads=6, side=32)
        method = SRA(student_block=3, teacher_block=8)
        step, state = step_and_state(make_objective(config, method))
        jax.clear_caches()
        start = time.perf_counter()
        jax.jit(step).lower(state, make_batch(8, config)).compile()
        return time.perf_counter() - start

    seconds(12)  # warms what is loaded once
    times = np.array([[seconds(depth) for depth in (12, 28)] for _ in range(5)])
    shallow, deep = np.median(times, axis=0)
    assert deep < 1.2 * shallow, times
