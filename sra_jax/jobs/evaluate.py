"""Measures images against a reference."""

import json
import logging
from collections.abc import Mapping

import jax

from sra_jax.core.errors import InputError
from sra_jax.core.files import writable_file
from sra_jax.data.images import ImageSet, open_images
from sra_jax.evaluation import history
from sra_jax.evaluation.inception_weights import HOW_TO_FETCH
from sra_jax.evaluation.metrics import (
    METRICS,
    Evaluator,
    classifier_evaluator,
    inception_evaluator,
    parse_metrics,
)
from sra_jax.evaluation.names import check_features, label
from sra_jax.evaluation.reference import (
    expect_one_size,
    open_labelled_reference,
    open_reference,
    save_reference,
)
from sra_jax.jobs.requests import EvaluateRequest
from sra_jax.jobs.sample import make_image_sampler, open_codec
from sra_jax.run import directory as workdirs
from sra_jax.sampling.images import SampledImages, check_count

DEFAULT_NUM = 50_000

_log = logging.getLogger(__name__)


def evaluate(request: EvaluateRequest) -> None:
    """Measures samples against a reference; logs a table and prints one JSON line.

    The numbers are computed as papers do, on Inception's features, or on those of a small
    classifier (see `evaluation.metrics`).

    Raises:
      InputError: a file is missing or of another form, the two sets are of different sizes, or
        fields of the request exclude each other.
    """
    if not request.reference:
        raise InputError("--reference is empty; name a file, a folder or embedded:digits")
    if request.samples and request.workdir:
        raise InputError("--samples and --workdir exclude each other; give one of them")
    for name in ("num", "vae", "checkpoint"):
        if not request.workdir and (value := getattr(request, name)) is not None:
            raise InputError(f"--{name}={value} needs --workdir, a run to sample; leave it out")
    choose_features(request)
    if request.save_reference is not None:
        writable_file(request.save_reference, ".npz")
    samples = _open_samples(request)
    evaluator = open_evaluator(request, *((samples.name, samples.resolution) if samples else ()))
    if samples:
        _report(samples, request, evaluator.measure(samples))


def open_evaluator(
    request: EvaluateRequest, name: str = "", resolution: tuple[int, int] | None = None
) -> Evaluator:
    """The evaluator that `request` asks for, of the set called `name`, images of `resolution`.

    Raises:
      InputError: the reference or the Inception file cannot be used, or the reference's images are
        of another resolution.
    """
    metrics = METRICS if request.metrics is None else parse_metrics(request.metrics)
    if choose_features(request) == "classifier":
        reference, labels = open_labelled_reference(request.reference)
    else:
        reference, labels = open_reference(request.reference, metrics), None
    if resolution:
        expect_one_size(name, resolution, reference)
    if labels is None:
        evaluator = inception_evaluator(request.inception, reference, metrics)
    else:
        evaluator = classifier_evaluator(reference, labels, metrics)
    if request.save_reference and jax.process_index() == 0:
        save_reference(request.save_reference, evaluator.reference, reference.resolution)
        _log.info("reference: %s", request.save_reference)
    return evaluator


def sample_run(
    workdir: str, count: int, vae: str | None, step: int | None = None
) -> tuple[int, SampledImages]:
    """The images that `sra-jax sample --num=COUNT` writes: balanced labels, EMA weights, the run's
    own solver and guidance.

    Returns:
      The step of the checkpoint, and the images.

    Raises:
      InputError: there is no such run or checkpoint, or it cannot be sampled from.
    """
    check_count(count)
    data = workdirs.read(workdirs.open_directory(workdir)).data
    codec = open_codec(data, vae)
    trained = workdirs.load_model(workdir, step=step)
    sampler = make_image_sampler(trained.experiment, trained.trunk, codec, count)
    return trained.step, SampledImages(workdir, sampler, trained.params, data.resolution)


def choose_features(request: EvaluateRequest) -> str:
    """The features that `request` asks for, one of `names.FEATURES`.

    Raises:
      InputError: they are unknown, or exclude other fields of the request.
    """
    features = request.features or ("inception" if request.inception else "classifier")
    check_features("features", features)
    if features == "inception" and not request.inception:
        raise InputError(f"features=inception needs inception=FILE: {HOW_TO_FETCH}")
    if features != "inception":
        for name in ("inception", "save_reference"):
            if (value := getattr(request, name)) is not None:
                raise InputError(
                    f"{name}={value} needs features=inception, but features is {features}; leave "
                    f"one out ({HOW_TO_FETCH})"
                )
    return features


def setting_of(request: EvaluateRequest) -> history.Record:
    """The setting of a run's measurements; only numbers of the same setting can be compared."""
    return {
        "features": choose_features(request),
        "reference": request.reference,
        "images": DEFAULT_NUM if request.num is None else request.num,
    }


def _open_samples(request: EvaluateRequest) -> ImageSet | None:
    if request.samples:
        return open_images(request.samples)
    if request.workdir:
        count = setting_of(request)["images"]
        step, images = sample_run(request.workdir, count, request.vae, request.checkpoint)
        _log.info("sampling with the ema weights of step %s", f"{step:,}")
        return images
    if request.save_reference:
        return None
    raise InputError("--samples or --workdir is missing; see --help")


def _report(samples: ImageSet, request: EvaluateRequest, numbers: Mapping[str, float]) -> None:
    """Logs a table and prints the line of JSON. Only the first process does anything."""
    if jax.process_index() > 0:
        return
    rows = {"samples": f"{samples.count:,} images"}
    rows |= {label(name): f"{number:.4f}" for name, number in numbers.items()}
    if choose_features(request) == "classifier":
        rows["(classifier)"] = "on a small classifier's features: not comparable with any FID"
    for name, value in rows.items():
        _log.info("%-30s%s", name, value)
    found = {"samples": samples.name, "reference": request.reference, "images": samples.count}
    print(json.dumps(found | numbers))
