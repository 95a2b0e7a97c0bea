"""k-nearest-neighbour accuracy: reads the class from features without fitting anything."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

NEIGHBOURS = 20
QUERIES_AT_ONCE = 256


@partial(jax.jit, static_argnames=("classes", "neighbours"))
def knn_accuracy(
    train: jax.Array,
    train_labels: jax.Array,
    test: jax.Array,
    test_labels: jax.Array,
    classes: int,
    neighbours: int = NEIGHBOURS,
) -> jax.Array:
    """Classifies test images by a vote of their nearest training images.

    Similarity is the cosine. Every neighbour has one vote; of classes with equal votes the lowest
    wins. With fewer training images than `neighbours`, all of them vote.

    Args:
      train, train_labels: P sets of features [P, N, D] from `linear.standardise`, and [N].
      test, test_labels: [P, M, D] and [M].
      classes: labels are in [0, classes).
      neighbours: number of votes for each test image.

    Returns:
      The share [P] of test images that are classified correctly.
    """
    neighbours = min(neighbours, len(train_labels))

    def one_set(train, test):
        train, test = _unit(train), _unit(test)

        def vote(query):
            _, nearest = jax.lax.top_k(train @ query, neighbours)
            return jnp.bincount(train_labels[nearest], length=classes).argmax()

        found = jax.lax.map(vote, test, batch_size=min(QUERIES_AT_ONCE, len(test)))
        return jnp.mean(found == test_labels)

    return jax.lax.map(lambda pair: one_set(*pair), (train, test))


def _unit(x: jax.Array) -> jax.Array:
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), np.finfo(np.float32).tiny)
