"""What images are measured by: a network's features, and a reference seen through them."""

from collections.abc import Collection
from dataclasses import dataclass

import jax
import numpy as np
from jax.experimental import multihost_utils

from sra_jax.core.errors import InputError
from sra_jax.data.images import ArrayImages, ImageSet, load_labelled
from sra_jax.evaluation.classifier import train_classifier
from sra_jax.evaluation.extraction import Network, extract
from sra_jax.evaluation.inception import Inception
from sra_jax.evaluation.inception_weights import load_inception
from sra_jax.evaluation.metrics import LABELS, Summary, compare, summarise
from sra_jax.evaluation.reference import Reference, complete

PROBE = "probe_"  # what the names of numbers that only compare models on one data set begin with


@dataclass(frozen=True)
class Judge:
    """Measures sets of images, one like the other. Every process has one, and makes the same calls.

    The names of its numbers begin with `prefix`.
    """

    network: Network
    summary: Summary
    metrics: tuple[str, ...]
    prefix: str = ""

    def measure(self, images: ImageSet) -> dict[str, float]:
        """The metrics of `images` against the reference."""
        features = extract(self.network, images, jax.local_devices())
        measured = summarise(images.name, features, self.metrics, published=not self.prefix)
        numbers = compare(measured, self.summary, self.metrics)
        return {self.prefix + name: number for name, number in numbers.items()}


def label(name: str) -> str:
    """How people call a number of a `Judge`."""
    plain = LABELS[name.removeprefix(PROBE)]
    return f"{plain} (probe)" if name.startswith(PROBE) else plain


def inception_judge(path: str, reference: Reference, metrics: Collection[str]) -> Judge:
    """Judges by Inception's features, as the papers do. Raises InputError: see `load_inception`."""
    network = Network(Inception(), load_inception(path))
    summary = complete(reference, network, jax.local_devices(), metrics)
    return Judge(network, summary, tuple(metrics))


def open_labelled_reference(path: str) -> tuple[Reference, np.ndarray]:
    """The images at `path` and their labels [N].

    Raises InputError: see `load_labelled`; or they are of one class alone.
    """
    images, labels = load_labelled(path)
    if len(np.unique(labels)) < 2:
        raise InputError(
            f"{path} holds images of class {labels[0]} alone, expected two classes or more; choose "
            "another reference"
        )
    found = ArrayImages(path, images)
    return Reference(path, Summary(), found, found.resolution), labels


def probe_judge(reference: Reference, labels: np.ndarray, metrics: Collection[str]) -> Judge:
    """Judges by the features of a classifier that learns the reference's own images.

    Raises InputError: see `train_classifier`.
    """
    images = np.concatenate(list(reference.images.chunks(0, reference.images.count)))
    classes, labels = np.unique(labels, return_inverse=True)
    classifier = train_classifier(images, labels, len(classes))
    # Trained in each process, it would differ in its last bits.
    network = Network(classifier.network, multihost_utils.broadcast_one_to_all(classifier.params))
    summary = complete(reference, network, jax.local_devices(), metrics, published=False)
    return Judge(network, summary, tuple(metrics), PROBE)
