"""A small classifier, trained on the reference itself, whose features replace Inception's.

It serves data sets for which Inception means nothing, such as digits of 8x8 pixels. Its numbers
compare models on one data set; they do not compare with published numbers.
"""

import logging
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from sra_jax.core.errors import InputError
from sra_jax.core.progress import Progress
from sra_jax.evaluation.inception import SPATIAL_CHANNELS, Features

WIDTH = 64
STEPS = 1000
EPOCHS = 10
BATCH = 64
LEARNING_RATE = 2e-3
WEIGHT_DECAY = 1e-2

_log = logging.getLogger(__name__)


class ConvNet(nn.Module):
    """Images [B, H, W, C] with values in [0, 255], H = W >= 4 -> `Features`.

    3x3 convolutions with stride 2 until 4x4 is left. `pool` [B, 64] is the mean over space of the
    last layer, `spatial` [B, 4, 4, 7] its first channels; the logits are [B, num_classes].
    """

    num_classes: int

    @nn.compact
    def __call__(self, images: jax.Array) -> Features:
        x = images.astype(jnp.float32) / 127.5 - 1
        x = _convolve(WIDTH // 2, 2 if x.shape[1] > 16 else 1)(x)
        while x.shape[1] >= 8:
            x = _convolve(WIDTH, 2)(x)
        x = _convolve(WIDTH, 1)(x)
        pool = x.mean(axis=(1, 2))
        kernel = self.param(
            "kernel", nn.initializers.lecun_normal(), (WIDTH, self.num_classes), jnp.float32
        )
        bias = self.param("bias", nn.initializers.zeros, (self.num_classes,), jnp.float32)
        logits = pool @ kernel
        return Features(pool, x[..., :SPATIAL_CHANNELS], logits + bias, logits)


class Classifier(NamedTuple):
    """A network and its parameters."""

    network: ConvNet
    params: Any

    def predict(self, images: np.ndarray, batch: int = 512) -> np.ndarray:
        """Predicted classes int32 [N] of `images` uint8 [N, H, W, C]."""
        chunks = [images[i : i + batch] for i in range(0, len(images), batch)]
        parts = [_predict(self.network, self.params, chunk) for chunk in chunks]
        return np.concatenate([np.asarray(part, np.int32) for part in parts])


def train_classifier(
    images: np.ndarray, labels: np.ndarray, num_classes: int, steps: int | None = None
) -> Classifier:
    """Trains a `ConvNet` to predict `labels` int [N] of `images` uint8 [N, H, W, C].

    AdamW, learning rate 2e-3 with cosine decay, batches of 64 images. `steps` is 1000 or ten
    epochs, whichever is more, if not given. The result is the same on the same machine.

    Raises:
      InputError: the images are smaller than 4x4 or not square.
    """
    height, width = images.shape[1:3]
    if height != width or height < 4:
        raise InputError(
            f"cannot train a classifier on images of {height}x{width}, expected squares of 4 or "
            "more; measure with features=inception"
        )
    steps = steps or max(STEPS, EPOCHS * len(images) // BATCH)
    network = ConvNet(num_classes)
    params = network.init(jax.random.key(0), images[:1])["params"]
    optimizer = optax.adamw(
        optax.cosine_decay_schedule(LEARNING_RATE, steps), weight_decay=WEIGHT_DECAY
    )
    opt_state = optimizer.init(params)
    step = jax.jit(partial(_step, network, optimizer), donate_argnums=(0, 1))
    images, labels = jnp.asarray(images), jnp.asarray(labels, jnp.int32)
    progress = Progress("classifier", steps, "steps")
    for done in range(steps):  # not a scan: XLA's convolutions are ten times slower in a CPU loop
        params, opt_state = step(params, opt_state, jax.random.key(done), images, labels)
        progress.add(1)
    return Classifier(network, params)


@partial(jax.jit, static_argnums=0)
def _predict(network: ConvNet, params: Any, images: jax.Array) -> jax.Array:
    return network.apply({"params": params}, images).logits.argmax(-1)


def _convolve(width: int, stride: int) -> nn.Module:
    return nn.Sequential([nn.Conv(width, (3, 3), stride, use_bias=False), nn.GroupNorm(8), nn.relu])


def _step(network, optimizer, params, opt_state, key, images, labels):
    """One train step on a random batch."""

    def loss(params, x, y):
        logits = network.apply({"params": params}, x).logits
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    rows = jax.random.randint(key, (BATCH,), 0, len(images))
    grads = jax.grad(loss)(params, images[rows], labels[rows])
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state
