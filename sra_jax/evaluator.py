"""From images to numbers about them."""

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from sra_jax import workdir as workdirs
from sra_jax.codecs import codec_from_name
from sra_jax.data.embedded import EMBEDDED
from sra_jax.errors import InputError
from sra_jax.evaluation.extraction import extract
from sra_jax.evaluation.images import BROKEN, ImageSet, describe_size, first_line, open_images
from sra_jax.evaluation.inception_weights import HOW_TO_FETCH, load_inception
from sra_jax.evaluation.pixels import pixel_report
from sra_jax.evaluation.reference import Reference, complete, open_reference, save_reference
from sra_jax.evaluation.suite import LABELS, METRICS, compare, parse_metrics, summarise
from sra_jax.outputs import writable_file
from sra_jax.sampler import DECODE_BATCH, MAX_IMAGES_DRAWN, expect_finite
from sra_jax.sampling.generate import choose_labels, make_sampler, sample_chunks

DEFAULT_NUM = 50_000
DRAW_CHUNK = 64  # images that a device samples at a time, as sra_jax.sample does

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvaluateRequest:
    """What to measure. Either `samples` or `workdir`; neither, to only save a reference.

    `num` and `vae` go with `workdir`; None draws 50,000 images.
    """

    reference: str
    samples: str | None = None
    workdir: str | None = None
    num: int | None = None
    vae: str | None = None
    metrics: str | None = None
    inception: str | None = None
    save_reference: str | None = None


def evaluate(request: EvaluateRequest) -> None:
    """Compares samples with a reference; logs a table and prints one JSON line.

    With Inception's weights the numbers are those of the papers, see `evaluation.suite`; without
    them, those of `evaluation.pixels`.

    Raises:
      InputError: a file is missing or of another form, the two sets are of different sizes, or the
        request asks for what cannot be together.
    """
    if not request.reference:
        raise InputError("--reference is empty; name a file, a folder or embedded:digits")
    if request.samples and request.workdir:
        raise InputError("--samples and --workdir exclude each other; give one of them")
    for name in ("num", "vae"):
        if not request.workdir and (value := getattr(request, name)) is not None:
            raise InputError(f"--{name}={value} needs --workdir, a run to draw from; leave it out")
    if request.inception:
        _measure_features(request)
    else:
        _measure_pixels(request)


def load_images(path: str) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [N, H, W, C] and labels [N] of an .npz, or an embedded set.

    Raises:
      InputError: no such file, or not of that form.
    """
    if path in EMBEDDED:
        return EMBEDDED[path].load()
    if Path(path).is_dir():
        raise InputError(
            f"{path} is a folder, without --inception=FILE expected an .npz with arr_0 and labels: "
            f"{HOW_TO_FETCH}"
        )
    if not Path(path).is_file():
        raise InputError(f"no file {path}; write it with sra_jax.sample, or check the path")
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            raise ValueError("it is a .npy, a single array")
        with loaded as arrays:
            images, labels = arrays["arr_0"], arrays["labels"]
    except BROKEN as error:
        reason = first_line(error)
        raise InputError(f"{path} is not an .npz with arr_0 and labels ({reason})") from None
    if images.dtype != np.uint8 or images.ndim != 4 or labels.shape != images.shape[:1]:
        raise InputError(
            f"{path} holds arr_0 {images.dtype} {images.shape} and labels {labels.shape}, expected "
            "uint8 [N, H, W, C] and [N]"
        )
    if len(images) < 2:
        raise InputError(f"{path} holds {len(images)} images, expected at least 2")
    if labels.dtype.kind not in "iu":
        raise InputError(f"{path} holds labels {labels.dtype}, expected integers; convert them")
    return images, labels


class DrawnImages:
    """Images drawn from the newest EMA weights of a run, as they are asked for.

    They are those that `sra_jax.sample --num` writes: balanced labels, seed 0, and the run's own
    solver and guidance.
    """

    def __init__(self, workdir: str, count: int, vae: str | None):
        """Opens the run. Raises InputError: there is none, or it cannot be sampled from."""
        if count < 2:
            raise InputError(f"num is {count}, expected at least 2 images to compare")
        if count > MAX_IMAGES_DRAWN:
            raise InputError(f"num is {count}, expected at most {MAX_IMAGES_DRAWN}; draw fewer")
        data = workdirs.read(workdirs.open_directory(workdir)).data
        self.name, self.count = workdir, count
        self.resolution = (data.resolution, data.resolution)
        self._labels = choose_labels("balanced", count, data.num_classes, seed=0)
        self._codec = codec_from_name(data.codec, data.scale, data.shift, vae)
        self._codec.decode(np.zeros((1, *data.latent_shape), np.float32))  # refuses a misfit
        self._trained = workdirs.load_model(workdir)
        _log.info("sampling with the ema weights of step %s", f"{self._trained.step:,}")

    def chunks(self) -> Iterator[np.ndarray]:
        """See `ImageSet`."""
        trained, experiment = self._trained, self._trained.experiment
        sampler = make_sampler(
            trained.model, experiment.process, experiment.solver_steps(), experiment.guidance()
        )
        wanted = range(-(-self.count // DRAW_CHUNK))
        drawn = sample_chunks(
            sampler, trained.params, self._labels, 0, DRAW_CHUNK, wanted, jax.local_devices()
        )
        left = self.count
        for number, latents in drawn:
            latents = expect_finite(latents, number)[:left]
            left -= len(latents)
            for start in range(0, len(latents), DECODE_BATCH):
                images = self._codec.decode(latents[start : start + DECODE_BATCH])
                yield np.broadcast_to(images, (*images.shape[:3], 3))


def _measure_features(request: EvaluateRequest) -> None:
    """FID and its kin."""
    metrics = parse_metrics(request.metrics or ",".join(METRICS))
    if request.save_reference is not None:
        writable_file(request.save_reference, ".npz")
    reference = open_reference(request.reference, metrics)
    samples = _open_samples(request)
    if samples:
        _expect_one_size(samples, reference)
    params, devices = load_inception(request.inception), jax.local_devices()
    real = complete(reference, params, devices, metrics)
    if request.save_reference:
        save_reference(request.save_reference, real, reference.resolution)
        _log.info("reference: %s", request.save_reference)
    if samples:
        drawn = summarise(samples.name, extract(params, samples, devices), metrics)
        numbers = compare(drawn, real, metrics)
        rows = {LABELS[name]: f"{number:.4f}" for name, number in numbers.items()}
        counts, numbers = f"{samples.count:,} images", {"images": samples.count, **numbers}
        _report(samples.name, request.reference, counts, rows, numbers)


def _measure_pixels(request: EvaluateRequest) -> None:
    """What serves images as small as the digits."""
    for name in ("workdir", "metrics", "save_reference"):
        if (value := getattr(request, name)) is not None:
            raise InputError(f"--{name}={value} needs --inception=FILE: {HOW_TO_FETCH}")
    if not request.samples:
        raise InputError("--samples is missing; see --help")
    images, labels = load_images(request.samples)
    real_images, real_labels = load_images(request.reference)
    if images.shape[1:] != real_images.shape[1:]:
        raise InputError(
            f"{request.samples} holds images of shape {images.shape[1:]}, {request.reference} of "
            f"{real_images.shape[1:]}; choose a reference of the same resolution"
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
        num = DEFAULT_NUM if request.num is None else request.num
        return DrawnImages(request.workdir, num, request.vae)
    if request.save_reference:
        return None
    raise InputError("--samples or --workdir is missing; see --help")


def _expect_one_size(samples: ImageSet, reference: Reference) -> None:
    if reference.resolution not in (None, samples.resolution):
        drawn, real = describe_size(samples.resolution), describe_size(reference.resolution)
        raise InputError(
            f"{samples.name} holds images of {drawn}, {reference.name} of {real}; choose a "
            "reference of the same resolution"
        )


def _expect_classes(request: EvaluateRequest, labels: np.ndarray, real: np.ndarray) -> None:
    if len(np.unique(real)) < 2:
        raise InputError(
            f"{request.reference} holds images of class {real[0]} alone, expected two classes or "
            "more; choose another reference"
        )
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
    for name, value in {"samples": counts, **rows}.items():
        _log.info("%-18s%s", name, value)
    print(json.dumps({"samples": samples, "reference": reference, **numbers}))
