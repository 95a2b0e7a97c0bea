"""Measures the checkpoints of a run as they appear, in another process than the one that trains."""

import logging
import time
from collections.abc import Collection

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from sra_jax.checkpoints.store import CheckpointError, CheckpointStore
from sra_jax.core.errors import InputError, RunError
from sra_jax.evaluation import history
from sra_jax.jobs.evaluate import EvaluateRequest, open_evaluator, setting_of
from sra_jax.jobs.sample import make_image_sampler, open_codec
from sra_jax.run import directory as workdirs
from sra_jax.sampling.images import SampledImages, check_count
from sra_jax.training.reporter import open_writer

POLL_SECONDS = 10.0
NONE, FINISHED = -1, -2

_log = logging.getLogger(__name__)


def watch(request: EvaluateRequest) -> None:
    """Measures the newest unmeasured checkpoint, again and again, until the run's last one is.

    Raises:
      InputError: something about the request or the workdir is wrong.
    """
    if not request.workdir:
        raise InputError("--watch needs --workdir, the run to watch")
    for name in ("samples", "checkpoint", "save_reference"):
        if (value := getattr(request, name)) is not None:
            raise InputError(f"--{name}={value} does not go with --watch; leave it out")
    setting = setting_of(request)
    check_count(setting["images"])
    workdir = workdirs.open_directory(request.workdir)
    data = workdirs.read(workdir).data
    codec, side = open_codec(data, request.vae), data.resolution
    evaluator = open_evaluator(request, request.workdir, (side, side))
    writer = open_writer(workdir / "tensorboard" / "watch")
    sampler, passed_over, waiting = None, set(), False
    while (step := _next_step(workdir, setting, passed_over)) != FINISHED:
        if step == NONE:
            if not waiting:
                _log.info("waiting for checkpoints of %s", workdir)
            waiting = True
            time.sleep(POLL_SECONDS)
            continue
        waiting = False
        try:
            trained = workdirs.load_model(request.workdir, step=step)
            # Made once, because it holds the compiled program.
            sampler = sampler or make_image_sampler(
                trained.experiment, trained.trunk, codec, setting["images"]
            )
            images = SampledImages(request.workdir, sampler, trained.params, side)
            history.record(workdir, step, setting, evaluator.measure(images), writer)
        except (CheckpointError, RunError) as error:
            passed_over.add(step)
            _log.warning("step %s is passed over: %s", f"{step:,}", error)
    _log.info("finished: the last checkpoint of %s is measured", workdir)


def _next_step(workdir: epath.Path, setting: history.Record, passed_over: Collection[int]) -> int:
    """The newest step that is neither measured nor passed over. NONE if there is none yet, FINISHED
    if the run's last step is among those. The first process decides for all.
    """
    if jax.process_index() > 0:
        return int(multihost_utils.broadcast_one_to_all(np.int32(0)))
    records = history.read(workdir)
    done = {record["step"] for record in records if history.alike(record, setting)} | {*passed_over}
    there = [step for step in CheckpointStore(workdir).steps() if step not in done]
    finished = workdirs.read(workdir).config["train"]["steps"] in done
    step = max(there, default=FINISHED if finished else NONE)
    return int(multihost_utils.broadcast_one_to_all(np.int32(step)))
