"""Converts a PyTorch file to a workdir, and a workdir to a PyTorch file."""

import contextlib
import dataclasses
import logging
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath

from sra_jax.checkpoints.orbax_options import saving_leanly
from sra_jax.checkpoints.store import CheckpointStore
from sra_jax.codecs import SDVAECodec
from sra_jax.config.recipes import NO_METHOD, imported_config
from sra_jax.config.schema import Experiment
from sra_jax.core.errors import InputError
from sra_jax.core.files import atomic_write, expect_local, writable_directory, writable_file
from sra_jax.data.spec import LatentSpec
from sra_jax.jobs.requests import ConvertRequest
from sra_jax.models import name_variant
from sra_jax.run import directory as workdirs
from sra_jax.torch_weights import to_torch
from sra_jax.torch_weights.files import (
    ENDINGS,
    TORCH_ENDINGS,
    import_torch,
    read_checkpoint,
    write_checkpoint,
)
from sra_jax.torch_weights.imported import Choices, ImportedModel, latent_spec
from sra_jax.torch_weights.recognise import FAMILIES, path_of
from sra_jax.training.state import method_tree

TREES = {"model": "params", "ema": "ema"}  # theirs and ours
IMPORT_FLAGS = tuple(field.name for field in dataclasses.fields(Choices))
EXPORT_FLAGS = ("weights", "checkpoint")

_log = logging.getLogger(__name__)


def convert(request: ConvertRequest) -> None:
    """Converts a PyTorch file to a workdir or a workdir to a PyTorch file.

    The output appears whole or not at all.

    Raises:
      InputError: the request or the source is invalid; nothing was written.
    """
    reads, writes = (path.endswith(ENDINGS) for path in (request.source, request.out))
    if reads == writes:
        both = ("both", "and", "end") if reads else ("neither", "nor", "ends")
        raise InputError(
            f"{both[0]} --source={request.source} {both[1]} --out={request.out} {both[2]} in "
            f"{', '.join(ENDINGS)}; expected one file that does, and one workdir"
        )
    defaults = ConvertRequest("", "")
    for name in EXPORT_FLAGS if reads else IMPORT_FLAGS:
        if getattr(request, name) != getattr(defaults, name):
            what = "workdir is exported" if reads else "file is converted"
            raise InputError(f"--{name} is for when a {what}; leave it out")
    _expect_free(request.out)
    with _without_empty_parents(request.out):
        if reads:
            _import(request)
        else:
            _export(request)


def _import(request: ConvertRequest) -> None:
    """Makes a workdir of a PyTorch file."""
    checkpoint = read_checkpoint(request.source)
    choices = Choices(**{name: getattr(request, name) for name in IMPORT_FLAGS})
    model = ImportedModel(checkpoint, choices)
    found = model.found
    _log.info("recognised %s", found.describe())
    path = path_of(checkpoint.args)
    config = imported_config(found.config, found.head, path, found.layout == "sit").to_dict()
    experiment = Experiment.from_dict(config)
    with _staged(request.out) as directory:
        trees = _read_trees(model) | {"step": jnp.asarray(0, jnp.int32)}
        data = latent_spec(found.config)
        workdirs.save_and_check(directory, config, data)
        _save(directory, trees, {"config": config, "source": request.source})
    _log.info("workdir: %s", request.out)
    _tell_next(request.out, experiment, data)


def _expect_free(out: str) -> None:
    expect_local(out)
    target = Path(out)
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise InputError(f"{out} is there already; choose another --out, or remove it")


@contextlib.contextmanager
def _without_empty_parents(out: str) -> Iterator[None]:
    """Removes the parent directories of `out` that were made meanwhile and are empty."""
    missing = [parent for parent in Path(out).absolute().parents if not parent.exists()]
    try:
        yield
    finally:
        for parent in missing:  # the innermost first
            with contextlib.suppress(OSError):  # it holds something, or was never made
                parent.rmdir()


def _tell_next(out: str, experiment: Experiment, data: LatentSpec) -> None:
    """Logs the commands that use the run at `out`, with the flags that they need."""
    sampling = experiment.sampling
    _log.info(
        "what the file lacks is as in configs/: sampled with %s, %s steps, guidance %s",
        *(sampling.solver, sampling.steps, sampling.guidance),
    )
    vae = " --vae=FOLDER" if data.codec == SDVAECodec.name else ""
    flags = {
        "sample": f"{vae} --out=samples.npz",
        "evaluate": f"{vae} --reference=FILE --inception=FILE",
        "probe": " --data=DIR",
        "train": f" --config={_config_file(experiment)} --config.data.path=DIR",
    }
    for command, more in flags.items():
        _log.info("next: python -m sra_jax %s --workdir=%s%s", command, shlex.quote(out), more)


def _config_file(experiment: Experiment) -> str:
    """The config file that trains this model, with its argument; FILE if none is shipped."""
    model, data = experiment.model, experiment.data
    variant = name_variant(model.width, model.depth, model.num_heads, model.patch_size)
    resolution = {(32, 32, 4): 256, (64, 64, 4): 512}.get(data.latent_shape)
    if variant is None or resolution is None or data.num_classes != 1000:
        return "FILE"
    options = f"res={resolution}" + ("" if experiment.methods else f",method={NO_METHOD}")
    path = getattr(experiment.process, "path", "linear")
    more = "" if path == "linear" else f" --config.process.path={path}"
    kind = FAMILIES[experiment.process.outputs].lower()
    return f"configs/{kind}_sra.py:{variant},{options}{more}"


@contextlib.contextmanager
def _staged(out: str) -> Iterator[epath.Path]:
    """A run's directory beside `out`, renamed to `out` at the end if nothing failed."""
    staging = writable_directory(f"{out.rstrip('/')}.converting")
    with workdirs.locked(epath.Path(staging)):
        try:
            for left in ("checkpoints", workdirs.CONFIG_FILE):  # by a conversion that was killed
                shutil.rmtree(staging / left, ignore_errors=True)
            workdirs.make_directories(epath.Path(staging))
            yield epath.Path(staging)
            staging.replace(out)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def _read_trees(model: ImportedModel) -> dict[str, Any]:
    """Reads the student's and the EMA's parameters; if the file holds one of them, it is both.

    The result is as `training.state.to_trees` makes it.
    """
    trees = {}
    for name in model.trees:
        _log.info("reading %s", name)
        trees[TREES[name]] = _placed(model.read(name))
    if len(trees) == 1:
        _log.info("the file holds one set of weights, taken for the student's and the EMA's")
        (only,) = trees.values()
        trees = dict.fromkeys(TREES.values(), only)
    return {name: tree["trunk"] for name, tree in trees.items()} | {
        method_tree(name, method): own
        for name, tree in trees.items()
        for method, own in tree["method"].items()
    }


def _placed(tree: dict[str, Any]) -> dict[str, Any]:
    """Places the tree on the default device.

    Empties the given tree leaf by leaf, so that two copies are never held at once.
    """
    placed = {}
    for name in list(tree):
        value = tree.pop(name)
        is_tree = isinstance(value, dict)
        placed[name] = _placed(value) if is_tree else jnp.asarray(value).block_until_ready()
    return placed


def _save(directory: epath.Path, trees: dict[str, Any], metadata: dict) -> None:
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(trees))
    _log.info("writing %.1f GB", size / 1e9)
    with CheckpointStore(directory) as store, saving_leanly(trees):
        store.save(0, trees, metadata)
        store.wait()


def _export(request: ConvertRequest) -> None:
    """Makes a PyTorch file of a workdir."""
    if Path(request.source).is_file():
        raise InputError(
            f"--source={request.source} is a file that does not end in {', '.join(ENDINGS)}, "
            "expected a workdir to export; rename the file, or check the path"
        )
    out = writable_file(request.out, ENDINGS)
    if out.suffix in TORCH_ENDINGS:
        import_torch(out)
    trained = workdirs.load_model(request.source, request.weights, request.checkpoint)
    sra = workdirs.load_method(request.source, "sra", request.weights, trained.step)
    methods = {"sra": sra[1]} if sra and sra[1] else {}
    config = trained.trunk.config
    tensors = to_torch({"trunk": trained.params, "method": methods}, config)
    kind = FAMILIES[config.outputs]
    variant = name_variant(config.width, config.depth, config.num_heads, config.layout.patch)
    facts = {
        "model": f"{kind}-{variant}" if variant else kind,
        "num_heads": config.num_heads,
        "steps": trained.step,
    }
    if path := getattr(trained.experiment.process, "path", None):
        facts["path_type"] = path
    with atomic_write(out) as scratch:
        write_checkpoint(scratch, tensors, facts)
    _log.info(
        "%s weights of step %s, %s tensors: %s",
        request.weights,
        f"{trained.step:,}",
        len(tensors),
        out,
    )
    if "sra" not in methods:
        _log.warning(
            "the model has no projection head (ap_head), which the SRA authors' scripts look for: "
            "load it there with strict=False"
        )
