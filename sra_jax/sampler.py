"""From a workdir to a file of images."""

import dataclasses
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from etils import epath

from sra_jax import workdir as workdirs
from sra_jax.codecs import codec_from_name
from sra_jax.errors import InputError
from sra_jax.experiment import Experiment
from sra_jax.sampling.generate import choose_labels, generate, make_sampler
from sra_jax.sampling.grid import save_grid

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SampleRequest:
    """What to sample; None leaves solver, steps and guidance to the run's config."""

    workdir: str
    out: str
    grid: str | None = None
    num: int = 100
    labels: str = "balanced"
    solver: str | None = None
    steps: str | None = None
    guidance: float | None = None
    guidance_interval: str | None = None
    seed: int = 0
    weights: str = "ema"
    step: int | None = None
    chunk: int = 250


def sample(request: SampleRequest) -> None:
    """Writes the images asked for.

    Raises:
      InputError: something about the request or the workdir is wrong; nothing was done.
    """
    saved = workdirs.read(epath.Path(request.workdir))
    experiment = _with_overrides(Experiment.from_dict(saved.config), request)
    steps, guidance = experiment.solver_steps(), experiment.guidance()
    labels = _labels(request, saved.data.num_classes)
    out, grid = (
        _writable(path, end) for path, end in ((request.out, ".npz"), (request.grid, ".png"))
    )

    trained = workdirs.load_model(request.workdir, request.weights, request.step)
    _log.info("sampling with the %s weights of step %s", request.weights, f"{trained.step:,}")
    sampler = make_sampler(trained.model, experiment.process, steps, guidance)
    codec = codec_from_name(saved.data.codec, saved.data.scale, saved.data.shift)
    chunk = min(request.chunk, request.num)
    images = generate(sampler, trained.params, codec, labels, request.seed, chunk)

    np.savez(out, arr_0=images, labels=labels)
    _log.info("images: %s", out)
    if grid:
        save_grid(grid, images)
        _log.info("picture: %s", grid)


def _with_overrides(experiment: Experiment, request: SampleRequest) -> Experiment:
    changes = {}
    for name in ("solver", "steps", "guidance"):
        if getattr(request, name) is not None:
            changes[name] = getattr(request, name)
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
