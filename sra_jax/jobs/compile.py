"""The `compile` command: compiles for TPU slices that this machine lacks, and predicts speed."""

import dataclasses
import importlib.util
import logging
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh

from sra_jax.config.schema import Experiment
from sra_jax.core.errors import InputError, RunError
from sra_jax.core.progress import format_seconds
from sra_jax.data.spec import LatentSpec
from sra_jax.distributed.mesh import MeshConfig, batch_sharding, check_batch, make_mesh, replicated
from sra_jax.distributed.sharding import abstract, sharding_table, tree_shardings
from sra_jax.jobs.requests import CompileRequest
from sra_jax.models.dit import REMAT_POLICIES
from sra_jax.pods.forecast import Task, compile_task, rank, report_lines, summary
from sra_jax.pods.slices import check_topology
from sra_jax.run.program import make_program
from sra_jax.sampling.sampler import make_sampler
from sra_jax.sampling.solvers import heun_step
from sra_jax.training.flops import count_flops

# Compiles in a fifth of the time. Memory is right to a tenth, up or down; speed is not.
QUICK = {"exec_time_optimization_effort": -1.0}

_log = logging.getLogger(__name__)


def compile_for_slice(config: Mapping[str, Any], request: CompileRequest) -> None:
    """Compiles what `request` asks for, and logs the report.

    Raises:
      InputError: the config, mesh, topology or request is bad, or libtpu is not installed.
    """
    if request.sweep and request.sampler:
        raise InputError("--sweep tries train steps; leave out --sampler or --sweep")
    if request.sweep:
        sweep(config, request.topology)
    elif request.sampler:
        sampler(config, request.topology, request.sampler_batch)
    else:
        train_step(config, request.topology)


def train_step(config: Mapping[str, Any], topology: str) -> None:
    """Compiles the train step and logs the report.

    Raises:
      InputError: the config, mesh or topology is bad, or libtpu is not installed.
    """
    experiment = Experiment.from_dict(config)
    mesh = make_mesh(experiment.mesh, slice_devices(topology))
    _report(_train_task(experiment, mesh), mesh, experiment)


def sampler(config: Mapping[str, Any], topology: str, batch: int) -> None:
    """Compiles the sampler of `batch` images and logs the report. Raises as `train_step` does."""
    experiment = Experiment.from_dict(config)
    if batch < 1:
        raise InputError(f"sampler batch is {batch}, expected at least 1")
    mesh = make_mesh(experiment.mesh, slice_devices(topology))
    check_batch(batch, 1, mesh)
    _report(_sampler_task(experiment, mesh, batch), mesh, experiment)


def sweep(config: Mapping[str, Any], topology: str) -> None:
    """Compiles the train step for many meshes and remat policies, and logs them, best first.

    Raises as `train_step` does.
    """
    experiment = Experiment.from_dict(config)
    variants = _variants(experiment, slice_devices(topology))
    _log.info("compiling %s variants for %s, up to half a minute each", len(variants), topology)
    began, results = time.perf_counter(), []
    for done, (name, mesh, variant) in enumerate(variants, start=1):
        try:
            outcome = compile_task(_train_task(variant, mesh), mesh, QUICK)
        except InputError as error:
            verdict = f"left out: {error}"
        else:
            results.append((name, outcome))
            verdict = summary(outcome)
        left = (time.perf_counter() - began) / done * (len(variants) - done)
        _log.info(
            "%s/%s  %s: %s; %s left", done, len(variants), name, verdict, format_seconds(left)
        )
    _log.info("best first, by the slow end of the estimate; memory is within a tenth of the truth:")
    width = max((len(name) for name, _ in results), default=0)
    for name, outcome in sorted(results, key=lambda result: rank(result[1])):
        _log.info("%s  %s", name.ljust(width), summary(outcome))


def slice_devices(topology: str) -> list[jax.Device]:
    """Returns the devices of a TPU slice, which can only be compiled for.

    Raises:
      InputError: the slice does not exist, or libtpu is not installed.
      RunError: libtpu fails.
    """
    check_topology(topology)
    if importlib.util.find_spec("libtpu") is None:
        raise InputError("libtpu is not installed; run: pip install -e .[tpu]")
    # JAX runs a v4 chip as one device; libtpu needs an option for that.
    options = {"chip_config_name": "megacore"} if topology.startswith("v4:") else {}
    try:
        description = topologies.get_topology_desc(
            platform="tpu", topology_name=topology, **options
        )
    except Exception as error:
        raise RunError(f"libtpu cannot describe {topology}: {error}") from error
    return list(description.devices)


def _train_task(experiment: Experiment, mesh: Mesh) -> Task:
    train = experiment.train
    check_batch(train.batch_size, experiment.parts, mesh)
    # Only shapes matter here: scale and shift are constants of the data set.
    shape = experiment.data.latent_shape
    data = LatentSpec("sd_vae", 1.0, 0.0, shape, 8 * shape[0], 3, experiment.data.num_classes)
    program = make_program(experiment, data, mesh)
    return Task(
        "train step",
        lambda: program.step.lower(program.state, program.batch),
        {
            "params": program.state.params,
            "ema": program.state.ema,
            "moments": program.state.opt_state,
            "batch": program.batch,
        },
        train.batch_size,
        program.flops.total,
        program.flops.useful,
    )


def _sampler_task(experiment: Experiment, mesh: Mesh, batch: int) -> Task:
    trunk = experiment.objective(mesh).trunk
    steps, guidance = experiment.solver_steps(), experiment.guidance()
    sample = make_sampler(trunk, experiment.process, experiment.conditioning, steps, guidance)
    shapes = jax.eval_shape(lambda: trunk.init(jax.random.key(0)))
    params = abstract(shapes, tree_shardings(shapes, mesh, trunk.rules))
    row = jax.ShapeDtypeStruct((batch,), np.int32, sharding=batch_sharding(mesh))
    seed = jax.ShapeDtypeStruct((), np.uint32, sharding=replicated(mesh))
    passes = sum(
        (2 if step.rule is heun_step else 1) * (2 if guidance.active(step.time) else 1)
        for step in steps
    )
    flops = passes * _forward_flops(experiment)
    return Task(
        "sampler",
        lambda: sample.lower(params, seed, row, row),
        {"params": params, "batch": [row, row]},
        batch,
        flops,
        flops,
    )


def _forward_flops(experiment: Experiment) -> int:
    """Operations of one forward pass of one image."""
    trunk, conditioning = experiment.trunk("cpu"), experiment.conditioning
    params = jax.eval_shape(trunk.init, jax.random.key(0))
    x = jax.ShapeDtypeStruct((1, *trunk.sizes.layout.shape), np.float32)
    t = jax.ShapeDtypeStruct((1,), np.float32)
    return count_flops(lambda p, x, t: trunk.apply(p, x, t, conditioning.null(1)), params, x, t)


def _variants(
    experiment: Experiment, devices: list[jax.Device]
) -> list[tuple[str, Mesh, Experiment]]:
    """Returns (name, mesh, experiment) of everything that a sweep compiles.

    These are FSDP of every power of two, and one mesh with tensor parallelism if the number of
    heads is even, each with every remat policy.
    """
    count = len(devices)
    meshes = [MeshConfig(-1, 2**power) for power in range(count.bit_length())]
    meshes = [config for config in meshes if count % config.fsdp == 0]
    if count % 2 == 0 and experiment.model.num_heads % 2 == 0:
        meshes.append(MeshConfig(1, -1, 2))
    variants = []
    for mesh in (make_mesh(config, devices) for config in meshes):
        for remat in REMAT_POLICIES:
            model = dataclasses.replace(experiment.model, remat=remat)
            name = f"{_axes(mesh)}, remat {remat}"
            variants.append((name, mesh, dataclasses.replace(experiment, model=model)))
    return variants


def _axes(mesh: Mesh) -> str:
    return " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items())


def _report(task: Task, mesh: Mesh, experiment: Experiment) -> None:
    """Compiles `task` and logs its report and the sharding of its parameters."""
    device = mesh.devices.flat[0]
    computes = experiment.trunk(device.platform).config
    _log.info(
        "compiling the %s for %s %s (%s), %s, remat %s: 1 to 4 minutes",
        task.name,
        mesh.size,
        device.device_kind,
        _axes(mesh),
        computes.dtype,
        computes.remat,
    )
    began = time.perf_counter()
    outcome = compile_task(task, mesh)
    _log.info("compiled in %s", format_seconds(time.perf_counter() - began))
    for line in report_lines(task, outcome, mesh):
        _log.info(line)
    for line in sharding_table(task.held["params"]):
        _log.info("sharding %s", line)
