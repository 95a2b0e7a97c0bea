"""A run's directory: its config.json, its checkpoints, and the lock that lets one run write."""

import contextlib
import dataclasses
import json
import logging
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
from etils import epath

from sra_jax.checkpoints.store import CheckpointStore
from sra_jax.config.methods import method_section, read_methods
from sra_jax.config.recipes import base_config
from sra_jax.config.schema import Experiment
from sra_jax.core.errors import InputError, expect_one_of
from sra_jax.core.files import atomic_write, in_bucket, lock, make_writable
from sra_jax.core.tree import differences
from sra_jax.data.spec import LatentSpec
from sra_jax.methods import METHODS, Method
from sra_jax.models import DiT, Params
from sra_jax.run import format1
from sra_jax.run.provenance import code_version
from sra_jax.training.state import method_tree

FORMAT_VERSION = 2  # 1 is that of version 0.1; see format1.py
CONFIG_FILE = "config.json"
LOCK_FILE = ".lock"
TREES = {"ema": "ema", "student": "params"}  # what a checkpoint calls the two kinds of weights

# Config fields that may change when a run resumes: how long, how often, on which devices, and where
# the data lie. All others change the numbers.
FREE_FIELDS = (
    "train.steps",
    "train.log_every",
    "train.checkpoint_every",
    "train.keep",
    "train.keep_every",
    "train.skip_nonfinite",
    "train.microbatches",
    "model.remat",
    "model.attention",
    "model.scan_unroll",
    "data.path",
    "data.side_sets",
    "mesh",
    "sampling",
    "evaluation",
    "method_files",
)
# The only fields that must stay when training starts from converted weights, which have seen no
# data here.
CONVERTED_FIELDS = (
    "config.model",
    "config.process.name",
    "config.process.path",
    "config.data.latent_shape",
    "config.data.num_classes",
    "data.codec",
    "data.scale",
    "data.shift",
)

_log = logging.getLogger(__name__)


class SavedRun(NamedTuple):
    """The contents of config.json. The last two are None in files of older versions."""

    config: dict[str, Any]
    data: LatentSpec
    fingerprint: str | None  # of the data's bytes
    code: dict[str, str] | None


class TrainedModel(NamedTuple):
    """A model read from a workdir.

    Attributes:
      experiment: its run, without the methods.
      data: the metadata of the data that it was trained on.
      trunk: the model itself: `trunk.apply(params, x_t, t, condition, Pass(taps=...))`.
      params: parameters of the trunk.
      step: of the checkpoint.
    """

    experiment: Experiment
    data: LatentSpec
    trunk: DiT
    params: Params
    step: int


def open_directory(workdir: str) -> epath.Path:
    """Returns the directory of a run, local or in a bucket; it need not exist.

    Raises:
      InputError: it is in a bucket, and the package that reads buckets is not installed.
    """
    if in_bucket(workdir):
        _list_buckets_anew()
    try:
        path = epath.Path(workdir)
        path.exists()
    except ImportError as error:
        raise InputError(f"cannot open {workdir}: {error} (pip install gcsfs for gs://)") from None
    return path


def _list_buckets_anew() -> None:
    """Turns off fsspec's cache of directory listings, which would hide what others write later."""
    from fsspec.config import conf

    for protocol in ("gcs", "s3", "az"):
        conf.setdefault(protocol, {})["use_listings_cache"] = False


def make_directories(workdir: epath.Path) -> None:
    """Makes the directories of a run. Raises InputError if one of them cannot be written to."""
    for directory in (workdir, workdir / "checkpoints", workdir / "tensorboard"):
        make_writable(directory)


def locked(workdir: epath.Path) -> contextlib.AbstractContextManager:
    """Keeps other runs out of a local workdir while entered; buckets have no locks.

    The first process of a run holds the lock for all of them.

    Raises:
      InputError: another run is in it; names its process.
    """
    if in_bucket(workdir) or jax.process_index() > 0:
        return contextlib.nullcontext()
    refusal = f"trains in {workdir}; wait for it, stop it, or choose another --workdir"
    return lock(workdir / LOCK_FILE, refusal)


def save_and_check(
    workdir: epath.Path,
    config: Mapping[str, Any],
    data: LatentSpec,
    fingerprint: str | None = None,
) -> None:
    """Writes config.json. If the run has a checkpoint, first checks that nothing else has changed.

    A changed code version is only a warning. A run that has more steps than `config` asks for
    keeps its config.json.

    Args:
      workdir: the run's directory.
      config: the config that the run is to have.
      data: the metadata of its data set.
      fingerprint: a digest of the data's bytes, compared with that of the run if both are known.

    Raises:
      InputError: the run was made with another config or other data; names what differs.
      OSError: the file cannot be written.
    """
    steps = CheckpointStore(workdir).steps()
    run = SavedRun(_plain(config), data, fingerprint, code_version())
    if steps:
        _expect_unchanged(workdir, read(workdir), run)
    if jax.process_index() == 0 and not (steps and steps[-1] >= config["train"]["steps"]):
        _write(workdir, run)


def _expect_unchanged(workdir: epath.Path, saved: SavedRun, new: SavedRun) -> None:
    """Raises InputError if `new` differs in what decides the numbers; warns of other code."""
    was, now = (
        {"config": _completed(run.config), "data": _plain(dataclasses.asdict(run.data))}
        for run in (saved, new)
    )
    if saved.data.num_examples == 0:  # converted weights
        was, now = ({name: _get(tree, name) for name in CONVERTED_FIELDS} for tree in (was, now))
    changed = differences(was, now, leave_out=[f"config.{field}" for field in FREE_FIELDS])
    prints = {saved.fingerprint, new.fingerprint} - {None}
    if len(prints) > 1 and not changed:
        changed = ["the record files have changed since the run began"]
    if changed:
        raise InputError(
            f"{workdir} was made with another setting: {'; '.join(changed)}; restore it, or "
            "choose another --workdir"
        )
    if saved.code and (changed := differences(saved.code, new.code)):
        _log.warning("other code than before: %s; numbers may differ", "; ".join(changed))


def _write(workdir: epath.Path, run: SavedRun) -> None:
    saved = {
        "format_version": FORMAT_VERSION,
        "config": run.config,
        "data": dataclasses.asdict(run.data),
        "data_fingerprint": run.fingerprint,
        "code": run.code,
    }
    with atomic_write(workdir / CONFIG_FILE) as scratch:
        scratch.write_text(json.dumps(saved, indent=2) + "\n")


def read(workdir: epath.Path) -> SavedRun:
    """Reads the config.json of the run in `workdir`.

    Raises:
      InputError: there is no run, or its file is damaged or of a newer format.
    """
    path = workdir / CONFIG_FILE
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        if not workdir.exists():
            raise InputError(f"no workdir {workdir}; train first, or check the path") from None
        raise InputError(
            f"{workdir} holds no run ({CONFIG_FILE} is missing); check the path"
        ) from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    try:
        saved = json.loads(text)
        version = saved["format_version"]
        if isinstance(version, int) and version <= FORMAT_VERSION:
            data = LatentSpec(**saved["data"])
            config = saved["config"]
            if format1.is_old(config):
                config = format1.upgrade_config(config)
            Experiment.from_dict(config, with_methods=False)
            return SavedRun(config, data, saved.get("data_fingerprint"), saved.get("code"))
    except (ValueError, KeyError, TypeError) as error:  # InputError is a ValueError
        raise InputError(
            f"{path} is damaged or of another version ({error}); restore it from a copy"
        ) from None
    raise InputError(f"{path} has format {version}, expected {FORMAT_VERSION}: update sra_jax")


def load_model(
    workdir: str, weights: str = "ema", step: int | None = None, platform: str | None = None
) -> TrainedModel:
    """Opens a workdir's model with its "ema" or "student" weights, of `step` or the newest.

    Raises:
      InputError: there is no run or no checkpoint, or it does not hold such weights.
    """
    expect_one_of("weights", weights, TREES)
    saved = read(open_directory(workdir))
    experiment = Experiment.from_dict(saved.config, with_methods=False)
    trunk = experiment.trunk(platform or jax.default_backend())
    shapes = jax.eval_shape(trunk.init, jax.random.key(0))
    with CheckpointStore(workdir) as store:
        expect_weights(store, weights, step)
        name = TREES[weights]
        step, trees = format1.restore(store, {name: shapes}, step)
    # Each process samples and probes on its own devices, so it takes its own copy.
    params = jax.tree.map(lambda leaf: leaf.addressable_data(0), trees[name])
    return TrainedModel(experiment, saved.data, trunk, params, step)


def load_method(workdir: str, name: str, weights: str, step: int) -> tuple[Method, Params] | None:
    """Reads a method of a run and its parameters; None if the run does not train with it.

    Args:
      workdir: the run's directory.
      name: of the method.
      weights: "ema" or "student".
      step: of the checkpoint.
    """
    saved = read(open_directory(workdir))
    section = {key: fields for key, fields in saved.config["method"].items() if key == name}
    for method in read_methods(section, steps_per_epoch=1):
        trunk = Experiment.from_dict(saved.config, with_methods=False).trunk("cpu")
        shapes = {
            TREES[weights]: jax.eval_shape(trunk.init, jax.random.key(0)),
            method_tree(TREES[weights], name): _method_shapes(method, trunk),
        }
        with CheckpointStore(workdir) as store:
            wanted = {key: tree for key, tree in shapes.items() if tree}
            _, trees = format1.restore(store, wanted, step, optional=wanted)
        own = trees.get(method_tree(TREES[weights], name), {})
        return method, jax.tree.map(lambda leaf: leaf.addressable_data(0), own)
    return None


def _method_shapes(method: Method, trunk: DiT) -> Params:
    return jax.eval_shape(partial(method.init, sizes=trunk.sizes), jax.random.key(0))


def expect_weights(store: CheckpointStore, weights: str, step: int | None = None) -> None:
    """Raises InputError unless the checkpoint of `step`, or the newest, holds `weights`."""
    expect_one_of("weights", weights, TREES)
    there = store.names(step)
    if TREES[weights] not in there:
        others = ", ".join(name for name, tree in TREES.items() if tree in there) or "neither"
        raise InputError(
            f"the checkpoint in {store.directory} has no {weights} weights, expected one of: "
            f"{others}; choose other --weights"
        )


def _completed(config: Mapping[str, Any]) -> dict[str, Any]:
    """Adds default values for missing fields, and drops methods of weight 0.

    The default of a field that is newer than the file stands for what the code did before.
    """
    default = json.loads(base_config().to_json())
    completed = {
        name: default.get(name, {}) | fields
        for name, fields in config.items()
        if isinstance(fields, dict)
    }
    completed["method"] = {
        name: (_plain(method_section(name)) if name in METHODS else {}) | fields
        for name, fields in config["method"].items()
        if fields.get("weight") != 0
    }
    return completed


def _plain(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `tree` as JSON gives it back: tuples become lists."""
    return json.loads(json.dumps(tree))


def _get(tree: Any, path: str) -> Any:
    for name in path.split("."):
        tree = tree.get(name) if isinstance(tree, dict) else None
    return tree
