"""Training in benchmarks/learning.py: the data set on the device, many steps in one dispatch."""

import dataclasses
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from learning_recipes import Recipe

from sra_jax.core.random import stream_key
from sra_jax.methods import SRA
from sra_jax.training.objective import Objective
from sra_jax.training.optimizer import make_optimizer
from sra_jax.training.state import TrainState
from sra_jax.training.step import make_train_step

ANY_SRA = SRA(student_block=1, teacher_block=1)  # its blocks do not change the first parameters


class Trainer:
    """The compiled program of one recipe on one data set, for runs from any seed.

    Attributes:
      objective: what is trained.
      chunk: steps of one dispatch.
    """

    def __init__(self, recipe: Recipe, images: jax.Array, labels: jax.Array, chunk: int):
        """Compiles the program. Images are uint8 [N, H, W, C], labels int32 [N]."""
        self.objective, self.chunk = recipe.objective(), chunk
        self._images, self._labels = images, labels
        self._head = recipe.sra is not None and recipe.sra.head
        optimizer = make_optimizer(recipe.optimizer)

        def begin(params):
            ema = jax.tree.map(jnp.copy, params)  # not an alias: a step donates both
            return TrainState(jnp.zeros((), jnp.int32), params, ema, optimizer.init(params), {})

        def advance(state, seed, images, labels):
            # The seed is an argument, so that the runs of all seeds share one program.
            config = dataclasses.replace(recipe.step, seed=seed)
            step = make_train_step(self.objective, optimizer, config)

            def body(state, rows):
                batch = {"moments": to_moments(images[rows]), "labels": labels[rows]}
                state, metrics = step(state, batch)
                return state, metrics["generation"]

            rows = rows_of_steps(seed, state.step, chunk, recipe.batch_size, len(images))
            return jax.lax.scan(body, state, rows)

        self._begin = jax.jit(begin)
        seed = jax.ShapeDtypeStruct((), jnp.uint32)
        state = jax.eval_shape(lambda seed: begin(self._params(seed)), seed)
        advance = jax.jit(advance, donate_argnums=0)
        self._advance = advance.lower(state, seed, images, labels).compile()

    def init(self, seed: int) -> TrainState:
        """The state before the first step, as `init_state` makes it."""
        return self._begin(self._params(jnp.uint32(seed)))

    def advance(self, state: TrainState, seed: int) -> tuple[TrainState, jax.Array]:
        """Makes `chunk` steps; returns their generation losses [chunk] too. Donates `state`."""
        return self._advance(state, jnp.uint32(seed), self._images, self._labels)

    def _params(self, seed: jax.Array) -> dict[str, Any]:
        params = _draw_params(dataclasses.replace(self.objective, methods=(ANY_SRA,)), seed)
        return params if self._head else params | {"method": {}}


@partial(jax.jit, static_argnames="objective")
def _draw_params(objective: Objective, seed: jax.Array) -> dict[str, Any]:
    """First parameters, compiled once for all variants: they differ in whether they have a head."""
    return objective.init(seed)


def rows_of_steps(
    seed: jax.Array, first: jax.Array, steps: int, batch: int, count: int
) -> jax.Array:
    """Indices int32 [steps, batch] of the examples of `steps` steps from step `first`.

    Every epoch is a permutation of all `count` examples, drawn from (seed, epoch). Batches follow
    each other without a gap, so a batch may hold the end of one epoch and the start of the next.
    """
    start = first * batch
    epoch = start // count
    touched = 1 + (count - 1 + steps * batch) // count  # most epochs that the steps can reach
    keys = jax.vmap(partial(stream_key, seed, "order"))(epoch + jnp.arange(touched))
    order = jax.vmap(lambda key: jax.random.permutation(key, count))(keys).reshape(-1)
    rows = jax.lax.dynamic_slice(order, (start - epoch * count,), (steps * batch,))
    return rows.reshape(steps, batch)


def to_moments(images: jax.Array) -> jax.Array:
    """Images uint8 [B, H, W, C] -> moments float32 [B, H, W, 2 C], as `PixelCodec.encode`."""
    mean = images.astype(jnp.float32) / 127.5 - 1
    return jnp.concatenate([mean, jnp.zeros_like(mean)], axis=-1)


def time_steps(trainers: Mapping[str, Trainer], rounds: int) -> dict[str, float]:
    """Milliseconds of a step of each trainer, timed in turns: the least of all rounds.

    On a CPU, where other processes take the cores, this is the process's own time. On an
    accelerator it is wall-clock time.
    """
    cpu = jax.default_backend() == "cpu"
    clock = time.process_time if cpu else time.perf_counter
    states = {name: trainer.init(0) for name, trainer in trainers.items()}
    least = dict.fromkeys(trainers, float("inf"))
    for _ in range(1 + rounds):
        for name, trainer in trainers.items():
            jax.block_until_ready(states)
            began = clock()
            states[name], losses = trainer.advance(states[name], 0)
            jax.block_until_ready((states[name], losses))
            least[name] = min(least[name], 1e3 * (clock() - began) / trainer.chunk)
    return least
