"""Shows a run's progress while it trains: grids of samples, and their FID."""

import io
import logging
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from sra_jax.config.schema import Experiment
from sra_jax.core.errors import RunError
from sra_jax.core.files import atomic_write
from sra_jax.core.progress import format_seconds
from sra_jax.data.spec import LatentSpec
from sra_jax.distributed.collectives import local_copies
from sra_jax.evaluation import history
from sra_jax.jobs.evaluate import EvaluateRequest, open_evaluator, setting_of
from sra_jax.jobs.sample import make_image_sampler, open_codec
from sra_jax.sampling.grid import image_grid, save_grid
from sra_jax.sampling.images import SampledImages
from sra_jax.training.state import TrainState

GRID_IMAGES = 40
GRID_FOLDER = "samples"

_log = logging.getLogger(__name__)


class _StoppedError(Exception):
    """The run was asked to stop."""


class Monitor:
    """Samples with the EMA weights at the config's intervals and after the last step, always from
    the same noise and labels.

    Grids go to WORKDIR/samples and TensorBoard, FID to WORKDIR/evaluation.jsonl and TensorBoard.
    """

    def __init__(
        self,
        experiment: Experiment,
        data: LatentSpec,
        mesh: jax.sharding.Mesh,
        workdir: epath.Path,
    ):
        self._experiment, self._data, self._mesh = experiment, data, mesh
        self._settings, self._steps = experiment.evaluation, experiment.train.steps
        self._workdir = workdir
        self._request = EvaluateRequest(
            reference=self._settings.reference,
            inception=self._settings.inception or None,
            features=self._settings.features,
            metrics="fid",
            num=self._settings.fid_images,
        )

    def open(self) -> None:
        """Makes the samplers and the evaluator that the config needs; `after` uses them.

        Raises:
          InputError: the VAE, the reference or Inception's weights cannot be used.
        """
        grids, fids = self._settings.grid_every > 0, self._settings.fid_every > 0
        if not (grids or fids):
            return
        experiment, data = self._experiment, self._data
        codec = open_codec(data, self._settings.vae or None)
        trunk = experiment.trunk(self._mesh.devices.flat[0].platform)
        per_device = -(-GRID_IMAGES // len(self._mesh.local_devices))
        labels = _spread(data.num_classes)
        self._grid = make_image_sampler(experiment, trunk, codec, labels, chunk=per_device)
        if fids:
            count, side = self._settings.fid_images, data.resolution
            self._sampler = make_image_sampler(experiment, trunk, codec, count)
            self._evaluator = open_evaluator(self._request, str(self._workdir), (side, side))

    def is_due(self, step: int) -> bool:
        """True if `after` would sample anything. All processes must call it."""
        return any(self._due(step))

    def after(
        self,
        step: int,
        state: TrainState,
        writer: Any,
        stopped: Callable[[], bool] = lambda: False,
    ) -> float:
        """Samples and measures what is due after `step`, unless it was done before.

        All processes must call it with the same step.

        Args:
          step: number of finished steps.
          state: the training state.
          writer: clu's interface; None on processes that do not log.
          stopped: becomes true, on all processes, if the run is to stop. The evaluation is then
            abandoned, and repeated when the run resumes.

        Returns:
          The seconds that it took.
        """
        grid, fid = self._due(step)
        if not (grid or fid):
            return 0.0
        began = time.perf_counter()
        params = local_copies(state.ema["trunk"], self._mesh)

        def check() -> None:
            if stopped():
                raise _StoppedError

        try:
            if grid and jax.process_index() == 0:
                self._save_grid(step, params, writer)
            if fid:
                side = self._data.resolution
                images = SampledImages(f"step {step}", self._sampler, params, side, check)
                numbers, setting = self._evaluator.measure(images), setting_of(self._request)
                history.record(self._workdir, step, setting, numbers, writer)
        except _StoppedError:
            _log.info("step %s: to be measured when the run resumes", f"{step:,}")
        except (RunError, OSError) as error:  # not finite, or no room: train on
            _log.warning("nothing is shown of step %s: %s", f"{step:,}", error)
        return time.perf_counter() - began

    def _due(self, step: int) -> tuple[bool, bool]:
        """Whether the grid, and the FID, of `step` are wanted and missing. The first process
        decides for all, because all take part in the sampling."""
        settings = self._settings
        grid, fid = (self._is_time(n, step) for n in (settings.grid_every, settings.fid_every))
        if not (grid or fid):
            return False, False
        missing = grid and not self._grid_path(step).exists(), fid and self._unmeasured(step)
        return tuple(multihost_utils.broadcast_one_to_all(np.array(missing)).tolist())

    def _unmeasured(self, step: int) -> bool:
        known = [found for found in history.read(self._workdir) if found["step"] == step]
        return not any(history.alike(found, setting_of(self._request)) for found in known)

    def _is_time(self, every: int, step: int) -> bool:
        """Whether `step` is a multiple of `every`, which 0 turns off, or the last step."""
        return every > 0 and step <= self._steps and (step % every == 0 or step == self._steps)

    def _grid_path(self, step: int) -> epath.Path:
        return self._workdir / GRID_FOLDER / f"step_{step:08d}.png"

    def _save_grid(self, step: int, params: Any, writer: Any) -> None:
        path = self._grid_path(step)
        began = time.perf_counter()
        chunks = self._grid.images(params, range(self._grid.chunks), self._mesh.local_devices)
        images = np.concatenate([images for _, images in chunks])
        picture = io.BytesIO()
        save_grid(picture, images)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as scratch:
            scratch.write_bytes(picture.getvalue())
        writer.write_images(step, {"samples": image_grid(images)[None]})
        _log.info("picture  %s in %s", path, format_seconds(time.perf_counter() - began))


def _spread(num_classes: int) -> np.ndarray:
    """The grid's labels: all classes in turn or, if they are too many, evenly spaced ones."""
    stride = max(1, num_classes // GRID_IMAGES)
    return (np.arange(GRID_IMAGES) * stride % num_classes).astype(np.int32)
