"""Metrics of image sets against a reference, as the ADM evaluation suite defines them
(Dhariwal & Nichol 2021), on the features of Inception or of a small classifier.

| name | metric | computed from | source |
|---|---|---|---|
| fid | Fréchet distance of pool features [2048] | samples, reference | Heusel et al. 2017 |
| sfid | the same of spatial features [2023] | samples, reference | Nash et al. 2021 |
| is | Inception Score | samples | Salimans et al. 2016 |
| pr | precision and recall of pool features | samples, reference | Kynkäänniemi et al. 2019 |

`statistics` and `scores` compute them. Memory: two matrices for fid and for sfid; 8 kB an image for
pr and 4 kB for is.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

import jax
import numpy as np
from jax.experimental import multihost_utils

from sra_jax.core.errors import expect_one_of
from sra_jax.data.images import ImageSet
from sra_jax.distributed.collectives import from_each_process
from sra_jax.evaluation.classifier import train_classifier
from sra_jax.evaluation.extraction import Network, extract
from sra_jax.evaluation.inception import Features, Inception
from sra_jax.evaluation.inception_weights import load_inception
from sra_jax.evaluation.names import CLASSIFIER_PREFIX, LABELS
from sra_jax.evaluation.reference import Reference
from sra_jax.evaluation.scores import inception_score, precision_recall
from sra_jax.evaluation.statistics import Moments, Summary, frechet_distance, warn_of_bias

MOMENTS = ("count", "mean", "scatter")
GROUP = 1024  # images; adding 64 to a covariance takes nearly as long
METRICS = ("fid", "sfid", "is", "pr")
# Fields of `Summary` that a metric needs of the reference.
NEEDS = {"fid": "pool", "sfid": "spatial", "pr": "points"}


@dataclass(frozen=True)
class Evaluator:
    """Measures image sets against a reference. All processes have one, and make the same calls.

    Attributes:
      network: computes the features.
      reference: the summary of the reference's images.
      metrics: some of `METRICS`.
      prefix: the beginning of the numbers' names.
    """

    network: Network
    reference: Summary
    metrics: tuple[str, ...]
    prefix: str = ""

    def measure(self, images: ImageSet) -> dict[str, float]:
        """The numbers of `images`, named as in `names.LABELS` after the prefix."""
        samples = summarise(images, self.network, self.metrics, published=not self.prefix)
        numbers = {}
        if "fid" in self.metrics:
            numbers["fid"] = frechet_distance(samples.pool, self.reference.pool)
        if "sfid" in self.metrics:
            numbers["sfid"] = frechet_distance(samples.spatial, self.reference.spatial)
        if "is" in self.metrics:
            numbers["inception_score"] = inception_score(samples.logits)
        if "pr" in self.metrics:
            numbers |= precision_recall(self.reference.points, samples.points)._asdict()
        return {self.prefix + name: number for name, number in numbers.items()}


def inception_evaluator(path: str, reference: Reference, metrics: Collection[str]) -> Evaluator:
    """Measures by Inception's features, as papers do; `path` is the file of its weights.

    Raises:
      InputError: see `load_inception`.
    """
    network = Network(Inception(), load_inception(path))
    return Evaluator(network, _complete(reference, network, metrics), tuple(metrics))


def classifier_evaluator(
    reference: Reference, labels: np.ndarray, metrics: Collection[str]
) -> Evaluator:
    """Measures by the features of a classifier, which it trains on the reference's own images and
    their `labels` [N].

    Raises:
      InputError: see `train_classifier`.
    """
    images = np.concatenate(list(reference.images.chunks(0, reference.images.count)))
    classes, labels = np.unique(labels, return_inverse=True)
    classifier = train_classifier(images, labels, len(classes))
    # Classifiers trained in two processes would differ in their last bits.
    network = Network(classifier.network, multihost_utils.broadcast_one_to_all(classifier.params))
    summary = _complete(reference, network, metrics, published=False)
    return Evaluator(network, summary, tuple(metrics), CLASSIFIER_PREFIX)


def parse_metrics(text: str) -> tuple[str, ...]:
    """The metrics named in `text`, as in "fid,is". Raises InputError: one is unknown."""
    names = [name.strip() for name in text.split(",")]
    for name in names:
        expect_one_of("metric", name, METRICS)
    return tuple(metric for metric in METRICS if metric in names)


def summarise(
    images: ImageSet, network: Network, metrics: Collection[str], published: bool = True
) -> Summary:
    """The summary of `images` that `metrics` need, of all processes' images on each process.

    Logs a warning if the images are too few for a covariance; `published` says that papers report
    these numbers, so the warning names how many images they use.
    """
    moments = {metric: Moments() for metric in ("fid", "sfid") if metric in metrics}
    rows = {metric: [] for metric in ("pr", "is") if metric in metrics}
    for batch in _grouped(extract(network, images, jax.local_devices())):
        features = {
            "fid": batch.pool,
            "sfid": batch.spatial.reshape(len(batch.spatial), -1),
            "pr": batch.pool,
            "is": batch.logits_unbiased,
        }
        for metric, taken in moments.items():
            taken.add(features[metric])
        for metric, taken in rows.items():
            taken.append(features[metric])
    moments, rows = _join_processes(moments, rows)
    gaussians = {metric: taken.gaussian() for metric, taken in moments.items()}
    for metric, taken in moments.items():
        width = len(gaussians[metric].mean)
        warn_of_bias(f"{LABELS[metric]} of {images.name}", taken.count, width, published)
    return Summary(gaussians.get("fid"), gaussians.get("sfid"), rows.get("pr"), rows.get("is"))


def _complete(
    reference: Reference, network: Network, metrics: Collection[str], published: bool = True
) -> Summary:
    """The reference's summary with all that `metrics` need, measured if its file lacks it."""
    known = reference.summary._asdict()
    missing = [metric for metric in metrics if metric in NEEDS and known[NEEDS[metric]] is None]
    if not missing:
        return reference.summary
    measured = summarise(reference.images, network, missing, published)
    return Summary(
        *(new if old is None else old for old, new in zip(known.values(), measured, strict=True))
    )


def _join_processes(
    moments: Mapping[str, Moments], rows: Mapping[str, list[np.ndarray]]
) -> tuple[dict[str, Moments], dict[str, np.ndarray]]:
    """The moments of all processes, and the rows [N, D] of all, in the order of the processes."""
    mine = {metric: np.concatenate(taken) for metric, taken in rows.items() if taken}
    for metric, taken in moments.items():
        mine |= {f"{metric}/{name}": getattr(taken, name) for name in MOMENTS}
    whole = {metric: Moments() for metric in moments}
    collected = {metric: [] for metric in rows}
    for arrays in from_each_process(mine):
        for metric in whole:
            whole[metric].merge(Moments(*(arrays[f"{metric}/{name}"] for name in MOMENTS)))
        for metric in collected:
            collected[metric] += [arrays[metric]] if metric in arrays else []
    return whole, {metric: np.concatenate(taken) for metric, taken in collected.items()}


def _grouped(batches: Iterable[Features]) -> Iterator[Features]:
    """The same features, in batches of 1024 images or somewhat more, except the last batch."""
    held, count = [], 0
    for batch in batches:
        held.append(batch)
        count += len(batch.pool)
        if count >= GROUP:
            yield Features(*map(np.concatenate, zip(*held, strict=True)))
            held, count = [], 0
    if held:
        yield Features(*map(np.concatenate, zip(*held, strict=True)))
