"""From a workdir to a file of images, on all devices of all processes, restartable."""

import dataclasses
import itertools
import logging
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from PIL import Image

from sra_jax import workdir as workdirs
from sra_jax.codecs import Codec, codec_from_name
from sra_jax.errors import InputError
from sra_jax.experiment import Experiment
from sra_jax.sampling.generate import choose_labels, make_sampler, sample_chunks
from sra_jax.sampling.grid import MAX_IMAGES, save_grid
from sra_jax.sampling.parts import PartStore, share
from sra_jax.training.reporting import format_seconds

PROGRESS_SECONDS = 5.0
DECODE_BATCH = 16  # a VAE needs some 200 MB for each image of 256 pixels

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SampleRequest:
    """What to sample; None leaves solver, steps and guidance to the run's config."""

    workdir: str
    out: str
    grid: str | None = None
    png_dir: str | None = None
    num: int = 100
    labels: str = "balanced"
    solver: str | None = None
    steps: str | None = None
    guidance: float | None = None
    guidance_interval: str | None = None
    guidance_channels: int | None = None
    seed: int = 0
    weights: str = "ema"
    step: int | None = None
    chunk: int = 64
    vae: str | None = None


def sample(request: SampleRequest) -> None:
    """Writes the images asked for. Run again after an interruption, it draws only what is missing.

    Raises:
      InputError: something about the request or the workdir is wrong; nothing was done.
    """
    saved = workdirs.read(epath.Path(request.workdir))
    experiment = _with_overrides(Experiment.from_dict(saved.config), request)
    experiment.solver_steps(), experiment.guidance()  # refuse what cannot be before anything else
    labels = _labels(request, saved.data.num_classes)
    out, grid = _writable(request.out, ".npz"), _writable(request.grid, ".png")
    codec = codec_from_name(saved.data.codec, saved.data.scale, saved.data.shift, request.vae)
    codec.decode(np.zeros((1, *saved.data.latent_shape), np.float32))  # refuses what does not fit

    trained = workdirs.load_model(request.workdir, request.weights, request.step)
    _log.info("sampling with the %s weights of step %s", request.weights, f"{trained.step:,}")
    parts = PartStore(out, _identity(request, experiment, trained.step))
    _draw(request, experiment, trained, codec, labels, parts)
    multihost_utils.sync_global_devices("all chunks are drawn")
    if jax.process_index() > 0:
        return
    if grid:
        save_grid(grid, np.concatenate(list(parts.images(min(request.num, MAX_IMAGES)))))
        _log.info("picture: %s", grid)
    if request.png_dir:
        _write_pngs(Path(request.png_dir), parts.images(request.num), labels)
        _log.info("pictures: %s", request.png_dir)
    parts.merge(labels)
    _log.info("images: %s", out)


def _draw(
    request: SampleRequest,
    experiment: Experiment,
    trained: workdirs.TrainedModel,
    codec: Codec,
    labels: np.ndarray,
    parts: PartStore,
) -> None:
    """Samples, decodes and stores this process's share of the chunks that are missing."""
    steps, guidance = experiment.solver_steps(), experiment.guidance()
    sampler = make_sampler(trained.model, experiment.process, steps, guidance)
    missing = parts.missing(_chunks(request))
    if len(missing) < _chunks(request):
        _log.info(
            "%s of %s chunks are there already", _chunks(request) - len(missing), _chunks(request)
        )
    mine = share(missing, jax.process_index(), jax.process_count())
    began = told = time.perf_counter()
    chunks = sample_chunks(
        sampler, trained.params, labels, request.seed, request.chunk, mine, jax.local_devices()
    )
    for done, (number, latents) in enumerate(chunks, start=1):
        images = [
            codec.decode(np.asarray(latents[i : i + DECODE_BATCH]))
            for i in range(0, request.chunk, DECODE_BATCH)
        ]
        parts.save(number, np.concatenate(images))
        now = time.perf_counter()
        if now - told > PROGRESS_SECONDS:
            seconds = (now - began) / done
            rate = request.chunk / seconds * jax.process_count()
            left = format_seconds((len(mine) - done) * seconds)
            _log.info("%s/%s chunks  %.1f images/s  %s left", done, len(mine), rate, left)
            told = now


def _chunks(request: SampleRequest) -> int:
    return math.ceil(request.num / request.chunk)


def _identity(request: SampleRequest, experiment: Experiment, step: int) -> dict:
    """All that decides the images."""
    return {
        "workdir": str(Path(request.workdir).resolve()),
        "step": step,
        "weights": request.weights,
        "num": request.num,
        "chunk": request.chunk,
        "labels": request.labels,
        "seed": request.seed,
        "vae": request.vae,
        "sampling": dataclasses.asdict(experiment.sampling),
    }


def _with_overrides(experiment: Experiment, request: SampleRequest) -> Experiment:
    changes = {
        name: getattr(request, name)
        for name in ("solver", "steps", "guidance", "guidance_channels")
        if getattr(request, name) is not None
    }
    if request.guidance_interval is not None:
        changes["guidance_interval"] = _parse_interval(request.guidance_interval)
    sampling = dataclasses.replace(experiment.sampling, **changes)
    return dataclasses.replace(experiment, sampling=sampling)


def _parse_interval(text: str) -> tuple[float, float]:
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"guidance interval is {text!r}, expected LOW,HIGH as in 0,0.7") from None
    return low, high


def _labels(request: SampleRequest, num_classes: int) -> np.ndarray:
    if request.num < 1 or request.chunk < 1:
        raise InputError(f"num {request.num} and chunk {request.chunk} must be at least 1")
    if not 0 <= request.seed < 2**32:
        raise InputError(f"seed is {request.seed}, expected in [0, 2**32)")
    return choose_labels(request.labels, request.num, num_classes, request.seed)


def _writable(path: str | None, end: str) -> Path | None:
    """The path, its directory made; refuses another ending before anything expensive starts."""
    if path is None:
        return None
    if not path.endswith(end):
        raise InputError(f"{path!r} does not end in {end}")
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from None
    return Path(path)


def _write_pngs(directory: Path, chunks: Iterator[np.ndarray], labels: np.ndarray) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    images = itertools.chain.from_iterable(chunks)
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        picture = image[..., 0] if image.shape[-1] == 1 else image
        Image.fromarray(picture).save(directory / f"{number:06d}-class{label:04d}.png")
