"""The metrics of the ADM evaluation suite (Dhariwal & Nichol 2021), on Inception's features.

| name | what | of | source |
|---|---|---|---|
| fid | Fréchet distance of pool features [2048] | samples, reference | Heusel et al. 2017 |
| sfid | the same of spatial features [2023] | samples, reference | Nash et al. 2021 |
| is | Inception Score | samples | Salimans et al. 2016 |
| pr | precision and recall of pool features | samples, reference | Kynkäänniemi et al. 2019 |

`statistics` and `scores` define them. Only what the metrics asked for need is kept: two matrices
for fid and sfid; 8 kB an image for pr and 4 kB for is.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from sra_jax.core.errors import expect_one_of
from sra_jax.distributed.collectives import from_each_process
from sra_jax.evaluation.inception import Features
from sra_jax.evaluation.scores import inception_score, precision_recall
from sra_jax.evaluation.statistics import Gaussian, Moments, frechet_distance, warn_of_bias

MOMENTS = ("count", "mean", "scatter")
GROUP = 1024  # images; adding 64 to a covariance takes nearly as long
METRICS = ("fid", "sfid", "is", "pr")
LABELS = {
    "fid": "FID",
    "sfid": "sFID",
    "inception_score": "Inception Score",
    "precision": "precision",
    "recall": "recall",
}


class Summary(NamedTuple):
    """A set of images as the metrics see it; None where no metric asked for it.

    `pool` and `spatial` are fitted to the 2048 and 2023 features, `points` [N, 2048] are the pool
    features and `logits` [N, 1008] the unbiased logits, float32.
    """

    pool: Gaussian | None = None
    spatial: Gaussian | None = None
    points: np.ndarray | None = None
    logits: np.ndarray | None = None


def parse_metrics(text: str) -> tuple[str, ...]:
    """The metrics named in `text`, as in "fid,is". Raises InputError: one is unknown."""
    names = [name.strip() for name in text.split(",")]
    for name in names:
        expect_one_of("metric", name, METRICS)
    return tuple(metric for metric in METRICS if metric in names)


def summarise(
    name: str, batches: Iterable[Features], metrics: Collection[str], published: bool = True
) -> Summary:
    """What `metrics` need of a set called `name`; warns where it is too small for a covariance,
    and, of features that papers too compare (`published`), of how many images they take.

    Each process gives the features of its part of the set; all get the summary of the whole.
    """
    moments = {metric: Moments() for metric in ("fid", "sfid") if metric in metrics}
    rows = {metric: [] for metric in ("pr", "is") if metric in metrics}
    for batch in _grouped(batches):
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
        warn_of_bias(f"{LABELS[metric]} of {name}", taken.count, width, published)
    return Summary(
        gaussians.get("fid"), gaussians.get("sfid"), rows.get("pr"), logits=rows.get("is")
    )


def compare(samples: Summary, reference: Summary, metrics: Collection[str]) -> dict[str, float]:
    """The numbers, named as in `LABELS`, of the `metrics` that both were summarised for."""
    numbers = {}
    if "fid" in metrics:
        numbers["fid"] = frechet_distance(samples.pool, reference.pool)
    if "sfid" in metrics:
        numbers["sfid"] = frechet_distance(samples.spatial, reference.spatial)
    if "is" in metrics:
        numbers["inception_score"] = inception_score(samples.logits)
    if "pr" in metrics:
        numbers |= precision_recall(reference.points, samples.points)._asdict()
    return numbers


def _join_processes(
    moments: Mapping[str, Moments], rows: Mapping[str, list[np.ndarray]]
) -> tuple[dict[str, Moments], dict[str, np.ndarray]]:
    """The moments of all processes, and the rows [N, D] of all, in order of the processes."""
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
    """The same features, in batches of 1024 images or somewhat more, but for the last."""
    held, count = [], 0
    for batch in batches:
        held.append(batch)
        count += len(batch.pool)
        if count >= GROUP:
            yield Features(*map(np.concatenate, zip(*held, strict=True)))
            held, count = [], 0
    if held:
        yield Features(*map(np.concatenate, zip(*held, strict=True)))
