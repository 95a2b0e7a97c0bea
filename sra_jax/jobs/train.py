"""The `train` command: builds mesh, data, program and checkpoints of a run, and runs the loop."""

import contextlib
import logging
import math
import os
import time
from collections.abc import Mapping
from typing import Any

import jax
from etils import epath

from sra_jax.checkpoints.store import CheckpointStore
from sra_jax.config.schema import DataConfig, Experiment
from sra_jax.core.errors import InputError
from sra_jax.core.progress import format_seconds
from sra_jax.data.embedded import EMBEDDED, ensure_embedded
from sra_jax.data.pipeline import batches, prefetch
from sra_jax.data.records import LatentSource, open_records
from sra_jax.data.spec import describe
from sra_jax.distributed.hardware import chip_of
from sra_jax.distributed.mesh import batch_sharding, check_batch, make_mesh
from sra_jax.distributed.sharding import local_rows, place_batch, sharding_table
from sra_jax.evaluation.history import best_step
from sra_jax.jobs.monitor import Monitor
from sra_jax.run import directory as workdirs
from sra_jax.run import format1
from sra_jax.run.program import TrainProgram, make_program
from sra_jax.training.loop import Hooks, run_steps
from sra_jax.training.preemption import StopSignals
from sra_jax.training.reporter import Reporter, StepCost, open_writer
from sra_jax.training.state import TrainState, from_trees, to_trees

_log = logging.getLogger(__name__)


def train(config: Mapping[str, Any], workdir: str) -> int:
    """Trains the run that `config` describes in `workdir`, or resumes it.

    Returns:
      The exit code: 0 if finished; 75 or 130 if stopped by SIGTERM or Ctrl-C, with its state saved.

    Raises:
      InputError: the config, the data or the workdir is wrong; no step was made.
      RunError: the run cannot continue.
    """
    experiment = Experiment.from_dict(config)
    mesh = make_mesh(experiment.mesh)
    check_batch(experiment.train.batch_size, experiment.parts, mesh)
    directory = workdirs.open_directory(workdir)
    source = open_data(experiment.data, directory)
    workdirs.make_directories(directory)
    program = make_program(experiment, source.spec, mesh)
    _expect_fields(source, program)
    with workdirs.locked(directory):
        workdirs.save_and_check(directory, config, source.spec, source.fingerprint())
        return _train(experiment, config, directory, source, mesh, program)


def open_data(data: DataConfig, workdir: epath.Path) -> LatentSource:
    """Opens the latents of a run; an embedded set is written to `workdir/data` first.

    Raises:
      InputError: there are no data, or not of the shape and classes that the config expects.
    """
    path = data.path
    if embedded := EMBEDDED.get(path):
        _expect_data(path, embedded.shape, embedded.num_classes, data)  # before writing the set
        workdirs.make_directories(workdir)
        path = ensure_embedded(path, workdir / "data")
    source = open_records(path, *data.side_sets)
    _expect_data(path, source.spec.latent_shape, source.spec.num_classes, data)
    if source.spec.num_examples != data.examples_per_epoch:
        _log.warning(
            "%s holds %s examples, the config's epochs are of %s (data.examples_per_epoch)",
            path,
            f"{source.spec.num_examples:,}",
            f"{data.examples_per_epoch:,}",
        )
    return source


def _expect_data(
    path: str, latent_shape: tuple[int, ...], num_classes: int, wanted: DataConfig
) -> None:
    """Raises InputError unless the latents at `path` have the config's shape and classes."""
    if latent_shape != tuple(wanted.latent_shape):
        raise InputError(
            f"{path} holds latents of shape {latent_shape}, the config expects "
            f"{tuple(wanted.latent_shape)}; choose another data.path, or give "
            f"--config.data.latent_shape='{latent_shape}'"
        )
    if num_classes != wanted.num_classes:
        raise InputError(
            f"{path} holds {num_classes} classes, the config expects {wanted.num_classes}; choose "
            "another data.path, or give --config.data.num_classes"
        )


def _expect_fields(source: LatentSource, program: TrainProgram) -> None:
    """Raises InputError unless the records have the fields that the objective reads."""
    there = source.fields()
    for name, wanted in program.batch.items():
        if name not in there:
            raise InputError(
                f"the records have no field {name!r}, which a method reads, but "
                f"{', '.join(there)}; name the side set that holds it in data.side_sets"
            )
        found, expected = (tuple(there[name].shape), there[name].dtype), wanted.shape[1:]
        if found != (expected, str(wanted.dtype)):
            raise InputError(
                f"field {name!r} of the records is {found[1]} {found[0]}, expected {wanted.dtype} "
                f"{expected}; encode it for this model"
            )


def _train(
    experiment: Experiment,
    config: Mapping[str, Any],
    workdir: epath.Path,
    source: LatentSource,
    mesh: jax.sharding.Mesh,
    program: TrainProgram,
) -> int:
    """Trains until the last step or until asked to stop; returns the exit code."""
    settings, size = experiment.train, experiment.train.batch_size
    with CheckpointStore(
        workdir,
        keep=settings.keep,
        keep_every=settings.keep_every or None,
        best=lambda: best_step(workdir),
    ) as store:
        start, state = _restore(store, program)
        monitor = Monitor(experiment, source.spec, mesh, workdir)
        if start >= settings.steps and not monitor.is_due(start):
            _log.info("finished: %s has %s steps", workdir, f"{start:,}")
            return 0
        sharding = batch_sharding(mesh)
        rows = local_rows(size, sharding)
        reader = batches(source, size, settings.seed, start, rows)
        _log.info("data     %s", describe(source.spec))
        _describe(experiment, mesh, program)
        monitor.open()
        compiled = _compile(program)
        writer = open_writer(workdir / "tensorboard")
        if state is None:
            state = program.init()
        else:
            monitor.after(start, state, writer)  # if the last run was stopped during it
        chip = chip_of(mesh.devices.flat[0])
        cost = StepCost(size, program.flops.useful, mesh.size, chip.flops if chip else None)
        reporter = Reporter(writer, start, settings.steps, settings.log_every, cost)
        with StopSignals() as stop, contextlib.closing(reporter):
            hooks = Hooks(
                store,
                lambda step, state: store.save(step, to_trees(state), {"config": dict(config)}),
                lambda step, state: monitor.after(step, state, writer, lambda: stop.stopped),
                reporter,
                stop,
            )

            def place(batch):
                wanted = {name: batch[name] for name in program.batch}
                return place_batch(wanted, rows, size, sharding)

            placed = prefetch(reader, place)
            remaining = range(start, settings.steps)
            done = run_steps(compiled, state, placed, remaining, settings.checkpoint_every, hooks)
    finished = done == settings.steps
    what = "finished" if finished else "stopped, run the same command to go on"
    _log.info("%s: step %s is saved in %s", what, f"{done:,}", workdir)
    return 0 if finished else stop.exit_code


def _restore(store: CheckpointStore, program: TrainProgram) -> tuple[int, TrainState | None]:
    """The newest undamaged checkpoint's step and state; 0 and None if there is no checkpoint."""
    if not store.steps():
        return 0, None
    abstract = to_trees(program.state)
    optional = abstract.keys() - {"step", "params", "ema"}
    step, trees = format1.restore(store, abstract, optional=optional)
    _log.info("resuming from step %s", f"{step:,}")
    if missing := sorted(abstract.keys() - trees.keys()):
        # Converted weights have no optimiser's state, and methods only as far as the file had them.
        _log.info("the checkpoint lacks %s: starting with fresh ones", ", ".join(missing))
        shardings = {n: jax.tree.map(lambda leaf: leaf.sharding, abstract[n]) for n in missing}

        def fresh():
            made = to_trees(program.init())
            return {name: made[name] for name in missing}

        trees |= jax.jit(fresh, out_shardings=shardings)()
    return step, from_trees(trees)


def _describe(experiment: Experiment, mesh: jax.sharding.Mesh, program: TrainProgram) -> None:
    """Logs the devices, the mesh, the model and the cost of a step."""
    device, size = mesh.devices.flat[0], experiment.train.batch_size
    axes = " x ".join(f"{axis} {count}" for axis, count in mesh.shape.items())
    chip, flops = chip_of(device), program.flops
    peak = f", peak {chip.flops / 1e12:,.0f} TFLOP/s each" if chip else ""
    _log.info(
        "devices  %s %s in %s processes%s", mesh.size, device.device_kind, jax.process_count(), peak
    )
    _log.info(
        "mesh     %s; batch %s, %s a device", axes, size, size * mesh.shape["tensor"] / mesh.size
    )
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(program.state.params))
    _log.info(
        "model    %s parameters, %s", f"{count:,}", experiment.trunk(device.platform).config.dtype
    )
    _log.info(
        "cost     %s GFLOP an image: forward %s, backward %s; recomputed %s",
        *(f"{value / 1e9:.4g}" for value in (flops.total, *flops)),
    )
    if xla_flags := os.environ.get("XLA_FLAGS"):
        _log.info("xla      %s", xla_flags)
    if mesh.size > 1:
        for line in sharding_table(program.state.params):
            _log.info("sharding %s", line)


def _compile(program: TrainProgram) -> jax.stages.Compiled:
    """Compiles the step ahead of time, so that it is never compiled again during training."""
    _log.info("compiling the train step")
    began = time.perf_counter()
    compiled = program.step.lower(program.state, program.batch).compile()
    _log.info("compiled in %s", format_seconds(time.perf_counter() - began))
    return compiled
