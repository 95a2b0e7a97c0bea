"""Puts a run together: config, mesh, data, model, checkpoints, loop."""

import logging
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from sra_jax import workdir as workdirs
from sra_jax.data.digits import ensure_digits
from sra_jax.data.latents import LatentSource, open_latents
from sra_jax.data.pipeline import batches, prefetch
from sra_jax.errors import InputError
from sra_jax.experiment import DataConfig, Experiment
from sra_jax.parallel import (
    batch_sharding,
    check_batch,
    make_mesh,
    place_batch,
    replicated,
    tree_shardings,
)
from sra_jax.training.checkpoint import CheckpointStore
from sra_jax.training.loop import run_steps
from sra_jax.training.optimizer import make_optimizer
from sra_jax.training.reporting import Reporter, format_seconds
from sra_jax.training.signals import StopSignals
from sra_jax.training.state import TrainState, init_state
from sra_jax.training.step import make_train_step

EMBEDDED_DIGITS = "embedded:digits"

_log = logging.getLogger(__name__)


def train(config: Mapping[str, Any], workdir: str) -> int:
    """Trains, or goes on training, the run that `config` describes in `workdir`.

    Returns:
      The exit code: 0 when finished, 75 or 130 when stopped by SIGTERM or Ctrl-C, all saved.

    Raises:
      InputError: something about the config, the data or the workdir is wrong; nothing was done.
      RunError: the run cannot go on.
    """
    with StopSignals() as stop:
        experiment = Experiment.from_dict(config)
        mesh = make_mesh(experiment.mesh)
        check_batch(experiment.train.batch_size, experiment.train.microbatches, mesh)
        directory = epath.Path(workdir)
        source = open_data(experiment.data, directory)
        held = workdirs.lock(directory)
        workdirs.remember(directory, config, source.spec)
        _train(experiment, config, directory, source, mesh, stop)
        if held is not None:
            held.close()
        return stop.exit_code


def open_data(data: DataConfig, workdir: epath.Path) -> LatentSource:
    """Opens the latents of a run; the embedded digits are written to `workdir/data` first.

    Raises:
      InputError: no such data, or not what the config says they are.
    """
    path = data.path
    if path == EMBEDDED_DIGITS:
        path = workdir / "data"
        ensure_digits(path)
    source = open_latents(path)
    found, wanted = source.spec.latent_shape, tuple(data.latent_shape)
    if found != wanted:
        raise InputError(
            f"{path} holds latents of shape {found}, the config expects {wanted}; choose another "
            f"data.path or set data.latent_shape={found}"
        )
    if source.spec.num_classes != data.num_classes:
        raise InputError(
            f"{path} holds {source.spec.num_classes} classes, the config expects "
            f"{data.num_classes}; choose another data.path or set data.num_classes"
        )
    return source


def _train(
    experiment: Experiment,
    config: Mapping[str, Any],
    workdir: epath.Path,
    source: LatentSource,
    mesh: jax.sharding.Mesh,
    stop: StopSignals,
) -> None:
    settings = experiment.train
    platform = mesh.devices.flat[0].platform
    objective = experiment.objective(platform)
    optimizer = make_optimizer(experiment.optimizer)

    def fresh_state() -> TrainState:
        return init_state(objective.model, optimizer, settings.seed, experiment.head)

    shapes = jax.eval_shape(fresh_state)
    shardings = tree_shardings(shapes, mesh)
    with CheckpointStore(
        workdir, keep=settings.keep, keep_every=settings.keep_every or None
    ) as store:
        start, state = _restore(store, shapes, shardings)
        if start >= settings.steps:
            _log.info("finished: %s has %s steps", workdir, f"{start:,}")
            return
        reader = batches(source, settings.batch_size, settings.seed, start)
        if state is None:
            state = jax.jit(fresh_state, out_shardings=shardings)()
        rows = batch_sharding(mesh)
        compiled = _compile(
            make_train_step(
                objective, optimizer, experiment.step_config(source.spec.scale, source.spec.shift)
            ),
            shapes,
            _batch_shapes(source, settings.batch_size),
            shardings,
            rows,
            replicated(mesh),
        )
        reporter = Reporter(
            _make_writer(workdir), start, settings.steps, settings.batch_size, settings.log_every
        )
        try:
            done = run_steps(
                compiled,
                state,
                prefetch(reader, lambda batch: place_batch(batch, rows)),
                range(start, settings.steps),
                settings.checkpoint_every,
                store,
                lambda step, state: store.save(step, state._asdict(), {"config": dict(config)}),
                reporter,
                stop,
            )
        finally:
            reporter.close()
    what = "finished" if done == settings.steps else "stopped, run the same command to go on"
    _log.info("%s: step %s is saved in %s", what, f"{done:,}", workdir)


def _restore(store: CheckpointStore, shapes: TrainState, shardings: Any):
    """The newest good checkpoint's step and state; 0 and None where there is none."""
    if not store.steps():
        return 0, None
    abstract = jax.tree.map(
        lambda s, sharding: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding),
        shapes,
        shardings,
    )
    step, trees = store.restore(abstract._asdict())
    _log.info("resuming from step %s", f"{step:,}")
    return step, TrainState(**trees)


def _compile(train_step, state, batch, state_shardings, rows, copied):
    """The step, compiled ahead of time, so that nothing can be compiled again later."""
    _log.info("compiling the train step")
    began = time.perf_counter()
    jitted = jax.jit(
        train_step,
        in_shardings=(state_shardings, rows),
        out_shardings=(state_shardings, copied),
        donate_argnums=0,
    )
    compiled = jitted.lower(state, batch).compile()
    _log.info("compiled in %s", format_seconds(time.perf_counter() - began))
    return compiled


def _batch_shapes(source: LatentSource, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    spec = source.spec
    moments = jax.ShapeDtypeStruct((batch_size, *spec.moments_shape), np.dtype(spec.dtype))
    return {"moments": moments, "labels": jax.ShapeDtypeStruct((batch_size,), np.int32)}


def _make_writer(workdir: epath.Path):
    if jax.process_index() > 0:
        return None
    from sra_jax.training.tensorboard import make_writer  # TensorBoard takes a second to import

    return make_writer(str(workdir / "tensorboard"))
