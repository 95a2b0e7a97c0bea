"""Measurements of benchmarks/learning.py: samples against real images, linear probes by block."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from learning_recipes import Setting, make_recipe

from sra_jax.codecs import PixelCodec
from sra_jax.core.random import stream_key
from sra_jax.data.embedded import load_digits
from sra_jax.data.shapes import TRAINING, draw_shapes
from sra_jax.evaluation.classifier import train_classifier
from sra_jax.evaluation.statistics import Gaussian, fit_gaussian, frechet_distance
from sra_jax.models import Pass
from sra_jax.probing.linear import QuickProtocol, accuracy, standardise
from sra_jax.sampling.guidance import Guidance
from sra_jax.sampling.sampler import make_sampler, sample_chunks
from sra_jax.sampling.solvers import make_steps

PART = 250  # images that are sampled, or read, at a time
PROBE_TIME = 0.3
REFERENCE_START = TRAINING  # the first shape that is never trained on
FRESH_START = TRAINING + 5000


class Images(NamedTuple):
    """Images uint8 [N, H, W, C] and labels int32 [N]."""

    images: np.ndarray
    labels: np.ndarray

    def first(self, count: int) -> "Images":
        return Images(self.images[:count], self.labels[:count])


class RealImages(NamedTuple):
    """`training` set, `reference` of the Fréchet distance, and `fresh` images for its floor and for
    the probes."""

    training: Images
    reference: Images
    fresh: Images


def real_images(setting: Setting) -> RealImages:
    """The images of a setting.

    No model is trained on the reference or the fresh images of the shapes. There are only 1,797
    digits, so all three sets are those, the fresh ones shuffled.
    """
    if setting.data == "digits":
        digits = Images(*load_digits())
        order = np.random.default_rng(0).permutation(len(digits.images))
        return RealImages(digits, digits, Images(digits.images[order], digits.labels[order]))
    fresh = max(setting.samples, setting.fitted + setting.tested)
    starts = {0: setting.training, REFERENCE_START: setting.reference, FRESH_START: fresh}
    return RealImages(*(Images(*draw_shapes(a, a + count)) for a, count in starts.items()))


class Bench:
    """Measures all runs on one data set: a classifier of it, a sampler and the probes.

    Attributes:
      facts: how well real images score. `floor` is the Fréchet distance of as many real images as
        there are samples; `accuracy` is the share of real images that the classifier knows.
    """

    def __init__(self, setting: Setting, real: RealImages):
        """Trains the classifier and measures the real images."""
        self._setting, fresh = setting, real.fresh
        recipe = make_recipe(setting, "sit", jax.default_backend())
        self._classes = recipe.transformer.conditioning.num_classes
        self._classifier = train_classifier(*real.training, self._classes, setting.classifier_steps)
        network = self._classifier.network
        self._read = jax.jit(lambda params, x: network.apply({"params": params}, x))
        self._real = self._classify(real.reference.images).gaussian
        self._probed = fresh.first(setting.fitted + setting.tested)

        read, base = self._classify(fresh.images), self._real
        half = fit_gaussian(read.features[: setting.samples])
        if setting.data == "digits":  # no other images: one half against the other
            half, base = (fit_gaussian(part) for part in np.array_split(read.features, 2))
        known = float(np.mean(read.labels == fresh.labels))
        self.facts = {"floor": frechet_distance(half, base), "accuracy": known}

        objective = recipe.objective()
        self._process, self._trunk = objective.process, objective.trunk
        self._conditioning = objective.conditioning
        steps = make_steps(self._process, "heun", setting.solver_steps)
        self._sampler = make_sampler(
            self._trunk, self._process, self._conditioning, steps, Guidance(1.0)
        )
        self._tap = jax.jit(self._pooled_features)

    def score(self, params: Any) -> dict[str, float]:
        """Fréchet distance and class agreement of samples of the trunk with `params`."""
        count = self._setting.samples
        labels = np.arange(count, dtype=np.int32) % self._classes
        chunk = min(PART, count)
        drawn = sample_chunks(
            self._sampler,
            params,
            labels,
            seed=0,
            chunk=chunk,
            wanted=range(-(-count // chunk)),
            devices=jax.local_devices()[:1],
        )
        latents = np.concatenate([latents for _, latents in drawn])[:count]
        read = self._classify(PixelCodec().decode(latents))
        return {
            "frechet": frechet_distance(read.gaussian, self._real),
            "agreement": float(np.mean(read.labels == labels)),
        }

    def probe(self, params: Any) -> list[float]:
        """Accuracy of a logistic regression on the features of each block, first block first.

        Features are averaged over tokens, at t = 0.3 and without a label.
        """
        images, labels = self._probed
        features = in_parts(lambda part, first: self._tap(params, part, first), images)
        split = self._setting.fitted
        return fit_probes(features.swapaxes(0, 1), labels, split, self._classes)

    def _pooled_features(self, params: Any, images: jax.Array, first: jax.Array) -> jax.Array:
        """Features float32 [B, depth, D] of images uint8 [B, H, W, C]; `first` is the index of the
        first of them."""
        x = images.astype(jnp.float32) / 127.5 - 1
        noise = jax.random.normal(stream_key(0, "learning probe", first), x.shape)
        t = jnp.full(len(x), PROBE_TIME)
        null = self._conditioning.null(len(x))
        x_t = self._process.corrupt(x, noise, t)
        features = self._trunk.apply(params, x_t, t, null, Pass(taps="all")).features
        blocks = [features[k].astype(jnp.float32).mean(1) for k in sorted(features)]
        return jnp.stack(blocks, axis=1)

    def _classify(self, images: np.ndarray) -> "Read":
        """Features and labels of `images` uint8 [N, H, W, C] by the classifier."""
        params = self._classifier.params
        found = in_parts(lambda part, first: self._read(params, part), images)
        return Read(found.pool, found.logits.argmax(-1))


class Read(NamedTuple):
    """The classifier's features [N, 64] of N images and the labels [N] that it finds."""

    features: np.ndarray
    labels: np.ndarray

    @property
    def gaussian(self) -> Gaussian:
        return fit_gaussian(self.features)


def in_parts(call: Callable[[np.ndarray, int], Any], images: np.ndarray) -> Any:
    """Joins the arrays of `call(part, index of its first image)` on parts of PART images.

    The last part is filled up by repetition, so that one compiled program serves all parts.
    """
    shape = (PART, *images.shape[1:])
    starts = range(0, len(images), PART)
    found = [call(np.resize(images[i : i + PART], shape), i) for i in starts]
    return jax.tree.map(lambda *arrays: np.concatenate(arrays)[: len(images)], *found)


def fit_probes(features: np.ndarray, labels: np.ndarray, split: int, classes: int) -> list[float]:
    """Accuracy of one logistic regression for each of P sets of features [P, N, D] with labels [N].

    It is fitted to the first `split` examples and tested on the others.
    """
    features, labels = jnp.asarray(features), jnp.asarray(labels)
    train, test = standardise(features[:, :split], features[:, split:])
    linear = QuickProtocol().fit(train, labels[:split], classes, seed=0, on_progress=lambda _: None)
    return [float(share) for share in accuracy(linear, test, labels[split:]).top1]
