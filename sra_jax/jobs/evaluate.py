"""From images to numbers about them."""

import json
import logging
from collections.abc import Mapping

import jax
import numpy as np

from sra_jax.core.errors import InputError, expect_one_of
from sra_jax.core.files import writable_file
from sra_jax.data.images import ImageSet, load_labelled, open_images
from sra_jax.evaluation import history
from sra_jax.evaluation.inception_weights import HOW_TO_FETCH
from sra_jax.evaluation.judge import (
    Judge,
    inception_judge,
    label,
    open_labelled_reference,
    probe_judge,
)
from sra_jax.evaluation.metrics import METRICS, parse_metrics
from sra_jax.evaluation.pixels import pixel_report
from sra_jax.evaluation.reference import expect_one_size, open_reference, save_reference
from sra_jax.jobs.requests import EvaluateRequest
from sra_jax.jobs.sample import make_drawing, open_codec
from sra_jax.run import directory as workdirs
from sra_jax.sampling.drawn import DrawnImages, check_count

DEFAULT_NUM = 50_000
MAX_PIXELS = 1024  # numbers an image; beyond it neither classifier nor covariance is fitted well
FEATURES = ("inception", "probe", "pixels")

_log = logging.getLogger(__name__)


def evaluate(request: EvaluateRequest) -> None:
    """Compares samples with a reference; logs a table and prints one JSON line.

    The numbers are those of the papers (Inception's features, see `evaluation.suite`), the same on
    a small classifier's features, or those of `evaluation.pixels`.

    Raises:
      InputError: a file is missing or of another form, the two sets are of different sizes, or the
        request asks for what cannot be together.
    """
    if not request.reference:
        raise InputError("--reference is empty; name a file, a folder or embedded:digits")
    if request.samples and request.workdir:
        raise InputError("--samples and --workdir exclude each other; give one of them")
    for name in ("num", "vae", "checkpoint"):
        if not request.workdir and (value := getattr(request, name)) is not None:
            raise InputError(f"--{name}={value} needs --workdir, a run to draw from; leave it out")
    if choose_features(request) == "pixels":
        _measure_pixels(request)
    else:
        _measure_features(request)


def open_judge(
    request: EvaluateRequest, name: str = "", resolution: tuple[int, int] | None = None
) -> Judge:
    """What `request` measures by: the set called `name`, images of `resolution`, if known.

    Raises:
      InputError: the reference or the Inception file cannot be used, or is of another size.
    """
    metrics = METRICS if request.metrics is None else parse_metrics(request.metrics)
    if choose_features(request) == "probe":
        reference, labels = open_labelled_reference(request.reference)
    else:
        reference, labels = open_reference(request.reference, metrics), None
    if resolution:
        expect_one_size(name, resolution, reference)
    if labels is None:
        judge = inception_judge(request.inception, reference, metrics)
    else:
        judge = probe_judge(reference, labels, metrics)
    if request.save_reference and jax.process_index() == 0:
        save_reference(request.save_reference, judge.summary, reference.resolution)
        _log.info("reference: %s", request.save_reference)
    return judge


def draw_images(
    workdir: str, count: int, vae: str | None, step: int | None = None
) -> tuple[int, DrawnImages]:
    """The step, and its images: `count` of balanced labels, with EMA weights and the run's own
    solver and guidance, as `sra_jax.cli.sample --num` writes them.

    Raises:
      InputError: there is no such run or checkpoint, or it cannot be sampled from.
    """
    check_count(count)
    data = workdirs.read(workdirs.open_directory(workdir)).data
    codec = open_codec(data, vae)
    trained = workdirs.load_model(workdir, step=step)
    drawing = make_drawing(trained.experiment, trained.model, codec, count)
    return trained.step, DrawnImages(workdir, drawing, trained.params, data.resolution)


def choose_features(request: EvaluateRequest) -> str:
    """The features that `request` asks for, one of `FEATURES`.

    Raises InputError: they do not go with what else it asks for.
    """
    features = request.features or ("inception" if request.inception else "pixels")
    expect_one_of("features", features, FEATURES)
    if features == "inception" and not request.inception:
        raise InputError(f"--features=inception needs --inception=FILE: {HOW_TO_FETCH}")
    if features != "inception":
        for name in ("inception", "save_reference"):
            if (value := getattr(request, name)) is not None:
                raise InputError(
                    f"--{name}={value} is of Inception's features, but --features is {features}; "
                    f"leave one out ({HOW_TO_FETCH})"
                )
    return features


def setting_of(request: EvaluateRequest) -> history.Record:
    """How `request` measures a run: what its numbers may be compared by."""
    return {
        "features": choose_features(request),
        "reference": request.reference,
        "images": DEFAULT_NUM if request.num is None else request.num,
    }


def _measure_features(request: EvaluateRequest) -> None:
    """FID and its kin."""
    if request.save_reference is not None:
        writable_file(request.save_reference, ".npz")
    samples = _open_samples(request)
    judge = open_judge(request, *((samples.name, samples.resolution) if samples else ()))
    if samples:
        numbers = judge.measure(samples)
        rows = {label(name): f"{number:.4f}" for name, number in numbers.items()}
        if judge.prefix:
            rows["(probe)"] = "on a small classifier's features: not comparable with any FID"
        counts, numbers = f"{samples.count:,} images", {"images": samples.count, **numbers}
        _report(samples.name, request.reference, counts, rows, numbers)


def _measure_pixels(request: EvaluateRequest) -> None:
    """What serves images as small as the digits."""
    for name in ("workdir", "metrics"):
        if (value := getattr(request, name)) is not None:
            raise InputError(
                f"--{name}={value} needs --inception=FILE ({HOW_TO_FETCH}), or --features=probe"
            )
    if not request.samples:
        raise InputError("--samples is missing; see --help")
    images, labels = load_labelled(request.samples)
    real, real_labels = open_labelled_reference(request.reference)
    real_images = real.images.images
    if images.shape[1:] != real_images.shape[1:]:
        raise InputError(
            f"{request.samples} holds images of shape {images.shape[1:]}, {request.reference} of "
            f"{real_images.shape[1:]}; choose a reference of the same resolution"
        )
    if real_images[0].size > MAX_PIXELS:
        raise InputError(
            f"{request.reference} holds images of {real_images[0].size:,} numbers, expected at "
            f"most {MAX_PIXELS:,} to compare by pixels; add --features=probe or --inception=FILE"
        )
    _expect_classes(request, labels, real_labels)
    if len(real_images) < 4 or np.all(real_images == real_images[0]):
        raise InputError(
            f"{request.reference} holds {len(real_images)} images, expected at least 4 that are "
            "not all alike; choose another reference"
        )
    report = pixel_report(images, labels, real_images, real_labels)
    if not report.frechet_floor > 0:
        raise InputError(
            f"one half of {request.reference} is as the other, with images that repeat; choose "
            "another reference"
        )
    rows = {
        "class agreement": f"{report.class_agreement:.1%} of samples look like the class asked for",
        "Fréchet distance": f"{report.frechet:.3f} in pixel space, not comparable with any FID",
        "its floor": f"{report.frechet_floor:.3f}, one half of the data against the other",
        "times the floor": f"{report.frechet / report.frechet_floor:.1f}",
    }
    counts = f"{len(images):,} against {len(real_images):,} real images"
    _report(request.samples, request.reference, counts, rows, report._asdict())


def _open_samples(request: EvaluateRequest) -> ImageSet | None:
    if request.samples:
        return open_images(request.samples)
    if request.workdir:
        count = setting_of(request)["images"]
        step, images = draw_images(request.workdir, count, request.vae, request.checkpoint)
        _log.info("sampling with the ema weights of step %s", f"{step:,}")
        return images
    if request.save_reference:
        return None
    raise InputError("--samples or --workdir is missing; see --help")


def _expect_classes(request: EvaluateRequest, labels: np.ndarray, real: np.ndarray) -> None:
    unknown = np.setdiff1d(labels, real)
    if len(unknown):
        raise InputError(
            f"{request.samples} holds label {unknown[0]}, which {request.reference} lacks; choose "
            "a reference of the same classes"
        )


def _report(
    samples: str,
    reference: str,
    counts: str,
    rows: Mapping[str, str],
    numbers: Mapping[str, float],
) -> None:
    if jax.process_index() > 0:
        return
    for name, value in {"samples": counts, **rows}.items():
        _log.info("%-25s%s", name, value)
    print(json.dumps({"samples": samples, "reference": reference, **numbers}))
