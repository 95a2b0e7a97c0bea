"""Samples images of a run into a file, on all devices of all processes; restartable."""

import dataclasses
import itertools
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from PIL import Image

from sra_jax.codecs import Codec, codec_from_name
from sra_jax.conditioning.class_labels import choose_labels
from sra_jax.config.schema import Experiment
from sra_jax.core.errors import InputError
from sra_jax.core.files import writable_directory, writable_file
from sra_jax.core.progress import Progress
from sra_jax.data.spec import LatentSpec
from sra_jax.jobs.requests import SampleRequest
from sra_jax.models import Trunk
from sra_jax.run import directory as workdirs
from sra_jax.sampling.grid import MAX_IMAGES, save_grid
from sra_jax.sampling.images import CHUNK, MAX_SAMPLES, ImageSampler
from sra_jax.sampling.part_store import PartStore
from sra_jax.sampling.sampler import make_sampler

_log = logging.getLogger(__name__)


def sample(request: SampleRequest) -> None:
    """Writes the images of `request`. After an interruption it samples only the missing chunks.

    Raises:
      InputError: something about the request or the workdir is wrong; nothing was done.
      RunError: the model's latents are not finite.
    """
    saved = workdirs.read(workdirs.open_directory(request.workdir))
    experiment = _with_overrides(Experiment.from_dict(saved.config, with_methods=False), request)
    experiment.solver_steps(), experiment.guidance()  # may refuse the request
    labels = _labels(request, saved.data.num_classes)
    request = dataclasses.replace(request, chunk=min(request.chunk, request.num))
    out = writable_file(request.out, ".npz")
    grid = None if request.grid is None else writable_file(request.grid, ".png")
    png_dir = None if request.png_dir is None else writable_directory(request.png_dir)
    codec = open_codec(saved.data, request.vae)

    trained = workdirs.load_model(request.workdir, request.weights, request.checkpoint)
    _log.info("sampling with the %s weights of step %s", request.weights, f"{trained.step:,}")
    identity = _identity(request, experiment, trained.step)
    parts = PartStore(out, identity, alone=jax.process_index() == 0)
    if out.exists():
        _log.info("%s is there already, of the same request: sampling it again", out)
    sampler = make_image_sampler(
        experiment, trained.trunk, codec, labels, request.seed, request.chunk
    )
    _sample_missing(sampler, trained.params, parts)
    multihost_utils.sync_global_devices("all chunks are sampled")
    if jax.process_index() > 0:
        return
    if grid:
        save_grid(grid, np.concatenate(list(parts.images(min(request.num, MAX_IMAGES)))))
        _log.info("picture: %s", grid)
    if png_dir:
        _write_pngs(png_dir, parts.images(request.num), labels)
        _log.info("pictures: %s", png_dir)
    parts.merge(labels)
    _log.info("images: %s", out)


def open_codec(data: LatentSpec, vae: str | None) -> Codec:
    """The codec of the latents of `data`; `vae` is the folder of its weights, if it has any.

    Raises:
      InputError: it cannot be opened, or decodes latents of another shape.
    """
    codec = codec_from_name(data.codec, data.scale, data.shift, vae)
    codec.decode(np.zeros((1, *data.latent_shape), np.float32))  # refuses latents of another shape
    return codec


def make_image_sampler(
    experiment: Experiment,
    trunk: Trunk,
    codec: Codec,
    labels: np.ndarray | int,
    seed: int = 0,
    chunk: int = CHUNK,
) -> ImageSampler:
    """The sampler of images of `labels` [N], or of that many balanced labels, by the solver, steps
    and guidance of `experiment`."""
    if isinstance(labels, int):
        labels = choose_labels("balanced", labels, experiment.data.num_classes, seed)
    steps, guidance = experiment.solver_steps(), experiment.guidance()
    sampler = make_sampler(trunk, experiment.process, experiment.conditioning, steps, guidance)
    return ImageSampler(sampler, codec, labels, seed, chunk)


def _sample_missing(sampler: ImageSampler, params: Any, parts: PartStore) -> None:
    """Samples and stores this process's share of the missing chunks."""
    count = sampler.chunks
    missing = set(parts.missing(count))
    if len(missing) < count:
        _log.info("%s of %s chunks are there already", count - len(missing), count)
    # The share is of all chunks: the missing ones change while other processes sample.
    mine = range(count)[jax.process_index() :: jax.process_count()]
    mine = [number for number in mine if number in missing]
    progress = Progress("samples", len(mine) * sampler.chunk, "images")
    for number, images in sampler.images(params, mine, jax.local_devices()):
        parts.save(number, images)
        progress.add(sampler.chunk)


def _identity(request: SampleRequest, experiment: Experiment, step: int) -> dict:
    """Everything that the images depend on."""
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
    asked = {
        "solver": request.solver,
        "steps": request.solver_steps,
        "guidance": request.guidance,
        "guidance_channels": request.guidance_channels,
    }
    changes = {name: value for name, value in asked.items() if value is not None}
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
    for name, value in {"num": request.num, "chunk": request.chunk}.items():
        if value < 1:
            raise InputError(f"{name} is {value}, expected at least 1")
    if request.num > MAX_SAMPLES:
        raise InputError(f"num is {request.num}, expected at most {MAX_SAMPLES}; sample fewer")
    if not 0 <= request.seed < 2**32:
        raise InputError(f"seed is {request.seed}, expected in [0, 2**32)")
    return choose_labels(request.labels, request.num, num_classes, request.seed)


def _write_pngs(directory: Path, chunks: Iterator[np.ndarray], labels: np.ndarray) -> None:
    images = itertools.chain.from_iterable(chunks)
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        picture = image[..., 0] if image.shape[-1] == 1 else image
        Image.fromarray(picture).save(directory / f"{number:06d}-class{label:04d}.png")
