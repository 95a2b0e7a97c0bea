"""Linear probes: linear classifiers that read the class from features, fitted many at a time.

A probe is BatchNorm without affine parameters, and one linear layer. The features do not change, so
the norm uses the statistics of the whole training set, which batches would only estimate.
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

OnProgress = Callable[[float], None]  # called with the share of the work that is done


class Linear(NamedTuple):
    """A linear layer for each of P sets of features: `kernel` [P, D, classes], `bias` [P, classes].

    Its inputs have zero mean and unit variance: `standardise` makes them.
    """

    kernel: jax.Array
    bias: jax.Array


class Accuracy(NamedTuple):
    """Top-1 and top-5 accuracy of P probes, [P] in [0, 1]."""

    top1: np.ndarray
    top5: np.ndarray


@dataclass(frozen=True)
class PaperProtocol:
    """The paper's protocol: Adam on the cross-entropy of batches, with cosine learning rate."""

    epochs: int = 80
    batch_size: int = 4096
    learning_rate: float = 1e-3

    def fit(
        self, x: jax.Array, labels: jax.Array, classes: int, seed: int, on_progress: OnProgress
    ) -> Linear:
        """Fits features `x` [P, N, D] to `labels` [N]; `seed` orders the images."""
        batch = min(self.batch_size, len(labels))
        steps = len(labels) // batch
        optimizer = optax.adam(optax.cosine_decay_schedule(self.learning_rate, self.epochs * steps))
        linear, state = _start(optimizer, x, classes)
        for epoch in range(self.epochs):
            order = jax.random.permutation(stream_key(seed, "probe order", epoch), len(labels))
            rows = order[: steps * batch].reshape(steps, batch)
            linear, state = _run_epoch(optimizer.update, linear, state, x, labels, rows)
            jax.block_until_ready(linear)
            on_progress((epoch + 1) / self.epochs)
        return linear


@dataclass(frozen=True)
class QuickProtocol:
    """Multinomial logistic regression by L-BFGS, for small sets.

    The loss is the sum of cross-entropies plus `|kernel|^2 / 2`, scikit-learn's default penalty.
    """

    rounds: int = 20
    iterations: int = 20  # in a round
    tolerance: float = 1e-4  # of the gradient of the mean loss

    def fit(
        self, x: jax.Array, labels: jax.Array, classes: int, seed: int, on_progress: OnProgress
    ) -> Linear:
        """Fits features `x` [P, N, D] to `labels` [N] without randomness: `seed` has no effect."""
        linear, state = _start(optax.lbfgs(), x, classes)
        for round_ in range(self.rounds):
            linear, state, slope = _run_lbfgs(linear, state, x, labels, self.iterations)
            if slope <= self.tolerance:
                break
            on_progress((round_ + 1) / self.rounds)
        on_progress(1.0)
        return linear


Protocol = PaperProtocol | QuickProtocol
PROTOCOLS: dict[str, Protocol] = {"paper": PaperProtocol(), "quick": QuickProtocol()}


def choose_protocol(name: str, images: int) -> str:
    """Returns the name of a protocol; "auto" is paper for many images, quick for few.

    Raises:
      InputError: the name is unknown.
    """
    expect_one_of("protocol", name, ("auto", *PROTOCOLS))
    if name != "auto":
        return name
    return "paper" if images >= PAPER_FROM else "quick"


def spread(
    load: Callable[[int], np.ndarray], shape: tuple[int, int, int], devices: Sequence[jax.Device]
) -> jax.Array:
    """Stacks P sets of features and distributes them over devices, each set on one device.

    Args:
      load: returns set i, float32 [N, D]. Sets are loaded one by one, so that the host holds each
        feature once.
      shape: (P, N, D).
      devices: the first P of them are used.

    Returns:
      [P', N, D]: the sets, padded by repetition to a multiple of the number of devices.
    """
    sets, *rows = shape
    devices = list(devices)[:sets]
    count = math.ceil(sets / len(devices)) * len(devices)
    loaded = (load(i % sets) for i in range(count))
    stacked = np.fromiter(loaded, np.dtype((np.float32, tuple(rows))), count)
    mesh = Mesh(np.array(devices), ("sets",))
    return jax.device_put(stacked, NamedSharding(mesh, PartitionSpec("sets")))


@partial(jax.jit, donate_argnames=("train", "test"))
def standardise(train: jax.Array, test: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Applies BatchNorm without affine to [P, N, D] and [P, M, D], with statistics of `train`.

    Both arguments are donated, because the features of a large set fill half a device.
    """
    mean = train.mean(axis=1, keepdims=True)
    variance = jnp.square(train - mean).mean(axis=1, keepdims=True)
    scale = jax.lax.rsqrt(variance + BATCH_NORM_EPS)
    return (train - mean) * scale, (test - mean) * scale


@jax.jit
def accuracy(linear: Linear, x: jax.Array, labels: jax.Array) -> Accuracy:
    """Computes the accuracy of P probes on features `x` [P, M, D] with `labels` [M]."""
    logits = jnp.einsum("pmd,pdc->pmc", x, linear.kernel) + linear.bias[:, None]
    _, best = jax.lax.top_k(logits, min(TOP, logits.shape[-1]))  # of equal logits, the lowest class
    hits = best == labels[:, None]
    return Accuracy(hits[..., 0].mean(axis=1), hits.any(axis=-1).mean(axis=1))


def _start(optimizer: optax.GradientTransformation, x: jax.Array, classes: int):
    """Returns linear layers of zeros and the optimiser's state, on the devices of `x` [P, N, D]."""
    sets, _, width = x.shape
    linear = Linear(jnp.zeros((sets, width, classes)), jnp.zeros((sets, classes)))
    started = linear, jax.vmap(optimizer.init)(linear)
    # Some of the state is weakly typed. Without this the first round would compile twice.
    started = jax.tree.map(lambda a: jax.lax.convert_element_type(a, a.dtype), started)
    return jax.device_put(started, x.sharding)


def _cross_entropy(linear: Linear, x: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns the mean over the images of one set, `x` [N, D]."""
    logits = x @ linear.kernel + linear.bias
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


@partial(jax.jit, static_argnames="update", donate_argnames=("linear", "state"))
def _run_epoch(update, linear: Linear, state, x: jax.Array, labels: jax.Array, rows: jax.Array):
    """Takes one step for each batch; `rows` [steps, batch] are indices of images."""

    def step(carry, rows):
        def one_set(linear, state, x):
            grads = jax.grad(_cross_entropy)(linear, x[rows], labels[rows])
            updates, state = update(grads, state, linear)
            return optax.apply_updates(linear, updates), state

        return jax.vmap(one_set)(*carry, x), None

    return jax.lax.scan(step, (linear, state), rows)[0]


@partial(jax.jit, static_argnames="iterations")
def _run_lbfgs(linear: Linear, state, x: jax.Array, labels: jax.Array, iterations: int):
    """Runs `iterations` for every set; also returns the largest entry of any gradient then."""
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
