"""Linear probes: how well a linear classifier reads the class from features, for many at once.

The classifier is BatchNorm without affine parameters, and one linear layer. As the features stand
still, the norm's statistics are those of the whole training set, which batches only estimate.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sra_jax.core.errors import expect_one_of
from sra_jax.core.random import stream_key

BATCH_NORM_EPS = 1e-5
PAPER_FROM = 20_000  # training images; with fewer, the quick protocol is the default
TOP = 5

# What a protocol calls after each round of its work, with the share of the work that is done.
Told = Callable[[float], None]


class Linear(NamedTuple):
    """A linear layer for each of P sets of features: `kernel` [P, D, classes], `bias` [P, classes].

    It reads features of zero mean and unit variance, as `standardise` makes them.
    """

    kernel: jax.Array
    bias: jax.Array


class Accuracy(NamedTuple):
    """Shares in [0, 1], [P] each: the class is the first, or among the first five."""

    top1: np.ndarray
    top5: np.ndarray


@dataclass(frozen=True)
class PaperProtocol:
    """The paper's: Adam on cross-entropy, in batches, the learning rate falling along a cosine."""

    epochs: int = 80
    batch_size: int = 4096
    learning_rate: float = 1e-3

    def fit(self, x: jax.Array, labels: jax.Array, classes: int, seed: int, told: Told) -> Linear:
        """Fits features `x` [P, N, D] to `labels` [N]; `seed` orders the batches."""
        batch = min(self.batch_size, len(labels))
        steps = len(labels) // batch
        optimizer = optax.adam(optax.cosine_decay_schedule(self.learning_rate, self.epochs * steps))
        linear, state = _start(optimizer, x, classes)
        for epoch in range(self.epochs):
            order = jax.random.permutation(stream_key(seed, "probe order", epoch), len(labels))
            rows = order[: steps * batch].reshape(steps, batch)
            linear, state = _run_epoch(optimizer.update, linear, state, x, labels, rows)
            jax.block_until_ready(linear)
            told((epoch + 1) / self.epochs)
        return linear


@dataclass(frozen=True)
class QuickProtocol:
    """For small sets: multinomial logistic regression, brought to its optimum by L-BFGS.

    The penalty, `|kernel|^2 / 2` beside the sum of cross-entropies, is scikit-learn's default.
    """

    rounds: int = 20
    iterations: int = 20  # of a round
    tolerance: float = 1e-4  # of the gradient of the mean loss

    def fit(self, x: jax.Array, labels: jax.Array, classes: int, seed: int, told: Told) -> Linear:
        """Fits features `x` [P, N, D] to `labels` [N]. Nothing here is left to chance."""
        linear, state = _start(optax.lbfgs(), x, classes)
        for round_ in range(self.rounds):
            linear, state, slope = _run_lbfgs(linear, state, x, labels, self.iterations)
            if slope <= self.tolerance:
                break
            told((round_ + 1) / self.rounds)
        told(1.0)
        return linear


Protocol = PaperProtocol | QuickProtocol
PROTOCOLS: dict[str, Protocol] = {"paper": PaperProtocol(), "quick": QuickProtocol()}


def choose_protocol(name: str, images: int) -> str:
    """The name of a protocol; "auto" takes the paper's for ImageNet, the quick one for small sets.

    Raises:
      InputError: an unknown name.
    """
    expect_one_of("protocol", name, ("auto", *PROTOCOLS))
    if name != "auto":
        return name
    return "paper" if images >= PAPER_FROM else "quick"


def spread(features: Sequence[np.ndarray], devices: Sequence[jax.Device]) -> jax.Array:
    """Stacks P sets of features [N, D] to [P', N, D], each set on one device.

    P' is P, filled up by repetition until the devices have equal shares.
    """
    devices = list(devices)[: len(features)]
    count = math.ceil(len(features) / len(devices)) * len(devices)
    stacked = np.stack([features[i % len(features)] for i in range(count)])
    mesh = Mesh(np.array(devices), ("sets",))
    return jax.device_put(stacked, NamedSharding(mesh, PartitionSpec("sets")))


@partial(jax.jit, donate_argnames=("train", "test"))
def standardise(train: jax.Array, test: jax.Array) -> tuple[jax.Array, jax.Array]:
    """BatchNorm without affine of features [P, N, D] and [P, M, D], by statistics of the first.

    Both are donated: the features of a large set fill half a device.
    """
    mean = train.mean(axis=1, keepdims=True)
    variance = jnp.square(train - mean).mean(axis=1, keepdims=True)
    scale = jax.lax.rsqrt(variance + BATCH_NORM_EPS)
    return (train - mean) * scale, (test - mean) * scale


@jax.jit
def accuracy(linear: Linear, x: jax.Array, labels: jax.Array) -> Accuracy:
    """Of the classifiers on features [P, M, D] with `labels` [M]."""
    logits = jnp.einsum("pmd,pdc->pmc", x, linear.kernel) + linear.bias[:, None]
    _, best = jax.lax.top_k(logits, min(TOP, logits.shape[-1]))  # of equals, the first class
    hits = best == labels[:, None]
    return Accuracy(hits[..., 0].mean(axis=1), hits.any(axis=-1).mean(axis=1))


def _start(optimizer: optax.GradientTransformation, x: jax.Array, classes: int):
    """Linear layers of zeros for features `x` [P, N, D], and the optimiser's state, placed so."""
    sets, _, width = x.shape
    linear = Linear(jnp.zeros((sets, width, classes)), jnp.zeros((sets, classes)))
    started = linear, jax.vmap(optimizer.init)(linear)
    # Some of the state is weakly typed, and would have the first round compiled a second time.
    started = jax.tree.map(lambda a: jax.lax.convert_element_type(a, a.dtype), started)
    return jax.device_put(started, x.sharding)


def _cross_entropy(linear: Linear, x: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean over the images of one set, x [N, D]."""
    logits = x @ linear.kernel + linear.bias
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


@partial(jax.jit, static_argnames="update", donate_argnames=("linear", "state"))
def _run_epoch(update, linear: Linear, state, x: jax.Array, labels: jax.Array, rows: jax.Array):
    """One step on each batch `rows` [steps, batch] of the images."""

    def step(carry, rows):
        def one_set(linear, state, x):
            grads = jax.grad(_cross_entropy)(linear, x[rows], labels[rows])
            updates, state = update(grads, state, linear)
            return optax.apply_updates(linear, updates), state

        return jax.vmap(one_set)(*carry, x), None

    return jax.lax.scan(step, (linear, state), rows)[0]


@partial(jax.jit, static_argnames="iterations")
def _run_lbfgs(linear: Linear, state, x: jax.Array, labels: jax.Array, iterations: int):
    """So many iterations for every set, and the largest entry of any gradient after them."""
    optimizer = optax.lbfgs()

    def one_set(linear, state, x):
        def loss(linear):
            penalty = jnp.sum(jnp.square(linear.kernel)) / (2 * len(labels))
            return _cross_entropy(linear, x, labels) + penalty

        value_and_grad = optax.value_and_grad_from_state(loss)

        def step(carry, _):
            linear, state = carry
            value, grad = value_and_grad(linear, state=state)
            updates, state = optimizer.update(
                grad, state, linear, value=value, grad=grad, value_fn=loss
            )
            return (optax.apply_updates(linear, updates), state), None

        (linear, state), _ = jax.lax.scan(step, (linear, state), length=iterations)
        return linear, state, optax.tree.norm(jax.grad(loss)(linear), ord=jnp.inf)

    linear, state, slopes = jax.vmap(one_set)(linear, state, x)
    return linear, state, slopes.max()
