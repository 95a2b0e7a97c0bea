"""What a step costs, counted in its program; nothing is executed."""

import dataclasses
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import count_multiply_adds
from jax.experimental.compilation_cache import compilation_cache
from tiny import TINY, make_batch, make_objective

from sra_jax.methods.sra import SRAConfig
from sra_jax.models import SIZES, TransformerConfig
from sra_jax.models.layers import Block
from sra_jax.training.flops import step_flops
from sra_jax.training.optimizer import OptimizerConfig, make_optimizer
from sra_jax.training.state import init_state
from sra_jax.training.step import StepConfig, make_train_step


def step_multiply_adds(config, method, batch):
    optimizer = make_optimizer(OptimizerConfig())
    objective = make_objective(config, method)
    init = partial(
        init_state, objective.model, optimizer, seed=0, head=method is not None and method.head
    )
    step = make_train_step(objective, optimizer, StepConfig())
    return count_multiply_adds(step, jax.eval_shape(init), jax.eval_shape(lambda: batch))


def block_multiply_adds(config, batch):
    block = Block(config.num_heads, config.mlp_ratio, jnp.float32, "xla")
    tokens = jax.ShapeDtypeStruct((batch, config.num_tokens, config.width), jnp.float32)
    c = jax.ShapeDtypeStruct((batch, config.width), jnp.float32)
    params = jax.eval_shape(block.init, jax.random.key(0), tokens, c)
    return count_multiply_adds(block.apply, params, tokens, c)


@pytest.mark.parametrize("kind", ["sit", "dit"])
@pytest.mark.parametrize("name", SIZES)
def test_alignment_costs_one_partial_forward_pass(name, kind):
    size, batch_size = SIZES[name], 2
    student, teacher = size.sit_blocks if kind == "sit" else size.dit_blocks
    config = TransformerConfig(
        kind=kind,
        input_size=32,
        patch_size=2,
        in_channels=4,
        width=size.width,
        depth=size.depth,
        num_heads=size.num_heads,
        num_classes=1000,
    )
    batch = make_batch(batch_size, config)
    plain = step_multiply_adds(config, None, batch)
    aligned = step_multiply_adds(config, SRAConfig(student, teacher), batch)
    block = block_multiply_adds(config, batch_size)
    head = 4 * config.width**2 * config.num_tokens * batch_size
    forward_and_backward = 3 * config.depth * block
    promised = (forward_and_backward + teacher * block + 3 * head) / forward_and_backward
    assert 0.99 * promised < aligned / plain < 1.01 * promised
    assert 0.98 < plain / forward_and_backward < 1.02


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
@pytest.mark.parametrize("head", [True, False], ids=["head", "no head"])
@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_analytic_count_is_that_of_the_step(remat, head, fraction):
    size = SIZES["B"]
    config = dataclasses.replace(
        TINY, kind="dit", input_size=32, patch_size=2, width=size.width, depth=4, remat=remat
    )
    method = SRAConfig(1, 3, head=head, teacher_fraction=fraction)
    counted = step_multiply_adds(config, method, make_batch(2, config))
    per_image = 2 * counted / 2  # two operations a multiply-add, a batch of two
    assert abs(step_flops(config, method).total / per_image - 1) < 0.01


def test_multiply_adds_are_those_that_xla_counts():
    """XLA counts a scanned body once, so the scan is unrolled; it counts two for a multiply-add,
    and elementwise work too, which this width makes small."""
    config = dataclasses.replace(
        TINY, input_size=16, patch_size=2, width=256, num_heads=4, depth=2, scan_unroll=2
    )
    batch = make_batch(16, config)
    optimizer = make_optimizer(OptimizerConfig())
    objective = make_objective(config, SRAConfig(1, 2))
    step = make_train_step(objective, optimizer, StepConfig())
    init = partial(init_state, objective.model, optimizer, seed=0, head=True)
    state = jax.eval_shape(init)
    compiled = jax.jit(step).lower(state, batch).compile()
    ratio = compiled.cost_analysis()["flops"] / (2 * count_multiply_adds(step, state, batch))
    assert abs(ratio - 1) < 0.02


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
        config = dataclasses.replace(TINY, depth=depth, width=384, num_heads=6, input_size=32)
        optimizer = make_optimizer(OptimizerConfig())
        objective = make_objective(config, SRAConfig(3, 8))
        init = partial(init_state, objective.model, optimizer, seed=0, head=True)
        state = jax.eval_shape(init)
        jax.clear_caches()
        start = time.perf_counter()
        step = make_train_step(objective, optimizer, StepConfig())
        jax.jit(step).lower(state, make_batch(8, config)).compile()
        return time.perf_counter() - start

    seconds(12)  # warms what is loaded once
    times = np.array([[seconds(depth) for depth in (12, 28)] for _ in range(5)])
    shallow, deep = np.median(times, axis=0)
    assert deep < 1.2 * shallow, times
