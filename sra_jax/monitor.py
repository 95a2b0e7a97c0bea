"""What a run shows of itself while it trains: a grid of samples, and what they are worth."""

import io
import logging
import time
from typing import Any

import jax
import numpy as np
from etils import epath

from sra_jax.data.spec import LatentSpec
from sra_jax.errors import RunError
from sra_jax.evaluation import history
from sra_jax.evaluation.drawn import DrawnImages
from sra_jax.evaluator import EvaluateRequest, open_judge, setting_of
from sra_jax.experiment import Experiment
from sra_jax.files import replacing
from sra_jax.models import DiffusionTransformer
from sra_jax.parallel import local_copies
from sra_jax.progress import format_seconds
from sra_jax.sampler import make_drawing, open_codec
from sra_jax.sampling.grid import image_grid, save_grid
from sra_jax.training.state import TrainState

GRID_IMAGES = 40
GRID_FOLDER = "samples"

_log = logging.getLogger(__name__)


class Monitor:
    """Every so many steps, draws with the EMA weights, always from the same noise and labels.

    Grids go to WORKDIR/samples and TensorBoard, FID to WORKDIR/evaluation.jsonl and TensorBoard.
    """

    def __init__(
        self,
        experiment: Experiment,
        data: LatentSpec,
        mesh: jax.sharding.Mesh,
        workdir: epath.Path,
        writer: Any,
    ):
        """`writer` is clu's interface, None on processes that do not log.

        Raises:
          InputError: the VAE, the reference or Inception's weights cannot be used.
        """
        self._settings, self._steps = experiment.evaluation, experiment.train.steps
        self._mesh, self._workdir, self._writer = mesh, workdir, writer
        self._side, self._judge = data.resolution, None
        if not (self._settings.grid_every or self._settings.fid_every):
            return
        codec = open_codec(data, self._settings.vae or None)
        model = DiffusionTransformer(experiment.transformer(mesh.devices.flat[0].platform))
        per_device = -(-GRID_IMAGES // len(mesh.local_devices))
        labels = _spread(data.num_classes)
        self._grid = make_drawing(experiment, model, codec, labels, chunk=per_device)
        if self._settings.fid_every:
            request = EvaluateRequest(
                reference=self._settings.reference,
                inception=self._settings.inception or None,
                features=self._settings.features,
                metrics="fid",
                num=self._settings.fid_images,
            )
            self._setting = setting_of(request)
            self._drawing = make_drawing(experiment, model, codec, self._settings.fid_images)
            self._judge = open_judge(request, str(workdir), (self._side, self._side))

    def after(self, step: int, state: TrainState) -> float:
        """Draws and measures what is due after `step`, unless it is there already.

        All processes must call it with the same step. Returns the seconds that it took.
        """
        grid, fid = self._grid_is_due(step), self._fid_is_due(step)
        if not (grid or fid):
            return 0.0
        began = time.perf_counter()
        params = local_copies(state.ema, self._mesh)
        try:
            if grid and jax.process_index() == 0:
                self._draw_grid(step, params)
            if fid:
                images = DrawnImages(f"step {step}", self._drawing, params, self._side)
                numbers = self._judge.measure(images)
                history.record(self._workdir, step, self._setting, numbers, self._writer)
        except (RunError, OSError) as error:  # no image, or no place for it: training goes on
            _log.warning("nothing is shown of step %s: %s", f"{step:,}", error)
        return time.perf_counter() - began

    def _grid_is_due(self, step: int) -> bool:
        every = self._settings.grid_every
        return every > 0 and (step % every == 0 or step == self._steps)

    def _fid_is_due(self, step: int) -> bool:
        every = self._settings.fid_every
        if not every or step % every:
            return False
        known = [found for found in history.read(self._workdir) if found["step"] == step]
        return not any(history.alike(found, self._setting) for found in known)

    def _draw_grid(self, step: int, params: Any) -> None:
        path = self._workdir / GRID_FOLDER / f"step_{step:08d}.png"
        if path.exists():
            return
        began = time.perf_counter()
        chunks = self._grid.images(params, range(self._grid.chunks), self._mesh.local_devices)
        images = np.concatenate([images for _, images in chunks])
        picture = io.BytesIO()
        save_grid(picture, images)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as scratch:
            scratch.write_bytes(picture.getvalue())
        self._writer.write_images(step, {"samples": image_grid(images)[None]})
        _log.info("picture  %s in %s", path, format_seconds(time.perf_counter() - began))


def _spread(num_classes: int) -> np.ndarray:
    """The grid's labels: all classes in turn, or of many some, evenly spaced."""
    stride = max(1, num_classes // GRID_IMAGES)
    return (np.arange(GRID_IMAGES) * stride % num_classes).astype(np.int32)
