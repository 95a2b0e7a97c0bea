"""A run's directory: its config, its data's metadata, its checkpoints, and who may write to it."""

import contextlib
import dataclasses
import fcntl
import json
import logging
import os
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
from etils import epath

from sra_jax.checkpoints.store import CheckpointStore
from sra_jax.config.recipes import base_config
from sra_jax.config.schema import Experiment
from sra_jax.core.errors import InputError, expect_one_of
from sra_jax.core.files import in_bucket, replacing
from sra_jax.core.tree import differences
from sra_jax.data.spec import LatentSpec
from sra_jax.evaluation.names import current_name
from sra_jax.models import DiffusionTransformer, init_params
from sra_jax.run.provenance import code_version

FORMAT_VERSION = 1
CONFIG_FILE = "config.json"
LOCK_FILE = ".lock"
TREES = {"ema": "ema", "student": "params"}  # what a checkpoint calls the two kinds of weights

# What may change when a run goes on: how long, how often, on which devices, and where the data lie.
# Everything else changes the numbers.
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
    "mesh",
    "sampling",
    "evaluation",
)


# What may not change when training starts from converted weights, which have seen no data here.
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
    """What a workdir remembers of its run."""

    config: dict[str, Any]
    data: LatentSpec
    fingerprint: str | None  # of the data's bytes; None where an older version has written the file
    code: dict[str, str] | None  # likewise


class TrainedModel(NamedTuple):
    """A model read from a workdir, with what it needs to be used."""

    experiment: Experiment
    data: LatentSpec
    model: DiffusionTransformer
    params: Any
    step: int


def open_directory(workdir: str) -> epath.Path:
    """The directory of a run, local or in a bucket; it need not exist.

    Raises:
      InputError: a bucket, and what reads buckets is not installed.
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
    """Lets this process see what others write after it has looked: fsspec, by which epath reaches
    buckets, would list each directory once."""
    from fsspec.config import conf

    for protocol in ("gcs", "s3", "az"):
        conf.setdefault(protocol, {})["use_listings_cache"] = False


def prepare(workdir: epath.Path) -> None:
    """Makes the directory of a run, and what a run writes to in it.

    Raises:
      InputError: it cannot be made, or not written to.
    """
    try:
        for name in ("checkpoints", "tensorboard"):
            (workdir / name).mkdir(parents=True, exist_ok=True)
        probe = workdir / f".probe-{os.getpid()}"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise InputError(
            f"cannot write to the workdir {workdir} ({error.strerror or error}); choose another "
            "--workdir, or remove what is in the way"
        ) from None


@contextlib.contextmanager
def claimed(workdir: epath.Path) -> Iterator[None]:
    """Keeps other runs out of a local workdir while entered.

    Raises:
      InputError: another run is in it.
    """
    if in_bucket(workdir) or jax.process_index() > 0:
        yield
        return
    with open(workdir / LOCK_FILE, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            owner = file.read().strip() or "unknown"
            raise InputError(
                f"another run (process {owner}) trains in {workdir}; wait for it, stop it, or "
                "choose another --workdir"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def remember(
    workdir: epath.Path,
    config: Mapping[str, Any],
    data: LatentSpec,
    fingerprint: str | None = None,
) -> None:
    """Writes what the run is; once it has a checkpoint, checks that it is what it was. Other code
    than before is logged as a warning.

    `fingerprint` is that of the data's bytes; without one they are not compared. Of converted
    weights only the model and the meaning of its latents are fixed.

    Raises:
      InputError: the workdir was made with another config or other data; names what differs.
      OSError: it cannot be written.
    """
    config, code = json.loads(json.dumps(config)), code_version()
    path, steps = workdir / CONFIG_FILE, CheckpointStore(workdir).steps()
    if steps:
        saved = read(workdir)
        now = {"config": _completed(config), "data": _plain(data)}
        was = {"config": _completed(saved.config), "data": _plain(saved.data)}
        if saved.data.num_examples == 0:
            _expect_same_head(workdir, saved.config, config)
            was, now = (
                {name: _get(tree, name) for name in CONVERTED_FIELDS} for tree in (was, now)
            )
        differing = differences(was, now, leave_out=[f"config.{field}" for field in FREE_FIELDS])
        other = fingerprint and saved.fingerprint and fingerprint != saved.fingerprint
        if other and not differing:
            differing = ["the data's bytes are others"]
        if differing:
            raise InputError(
                f"{workdir} was made with another setting: {'; '.join(differing)}; restore it, or "
                "choose another --workdir"
            )
        if changed := differences(saved.code or code, code):
            _log.warning("other code than before: %s; numbers may differ", "; ".join(changed))
    if jax.process_index() > 0 or (steps and steps[-1] >= config["train"]["steps"]):
        return  # a run that has gone further than it is asked to stays what it is
    remembered = {
        "format_version": FORMAT_VERSION,
        "config": config,
        "data": _plain(data),
        "data_fingerprint": fingerprint,
        "code": code,
    }
    with replacing(path) as scratch:
        scratch.write_text(json.dumps(remembered, indent=2) + "\n")


def read(workdir: epath.Path) -> SavedRun:
    """What the run in `workdir` is.

    Raises:
      InputError: there is no run, or one of a newer format.
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
            config = _with_current_names(saved["config"])
            Experiment.from_dict(config)
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
      InputError: no run, no checkpoint, or unknown weights, or such as the checkpoint lacks.
    """
    expect_one_of("weights", weights, TREES)
    saved = read(open_directory(workdir))
    experiment = Experiment.from_dict(saved.config)
    model = DiffusionTransformer(experiment.transformer(platform or jax.default_backend()))
    shapes = jax.eval_shape(lambda key: init_params(model, key, experiment.head), jax.random.key(0))
    with CheckpointStore(workdir) as store:
        expect_weights(store, weights, step)
        name = TREES[weights]
        step, trees = store.restore({name: shapes}, step)
    # A process samples and probes on its own devices, with its own copy.
    params = jax.tree.map(lambda leaf: leaf.addressable_data(0), trees[name])
    return TrainedModel(experiment, saved.data, model, params, step)


def expect_weights(store: CheckpointStore, weights: str, step: int | None = None) -> None:
    """Raises InputError unless the checkpoint of `step`, or the newest, holds such weights."""
    expect_one_of("weights", weights, TREES)
    there = store.names(step)
    if TREES[weights] not in there:
        others = ", ".join(name for name, tree in TREES.items() if tree in there) or "neither"
        raise InputError(
            f"the checkpoint in {store.directory} has no {weights} weights, expected one of: "
            f"{others}; choose other --weights"
        )


def _with_current_names(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The config, its evaluation.features named as in this version."""
    evaluation = config.get("evaluation") if isinstance(config, dict) else None
    if not isinstance(evaluation, dict) or "features" not in evaluation:
        return config
    features = current_name(evaluation["features"])
    return config | {"evaluation": evaluation | {"features": features}}


def _completed(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with the fields that it lacks, as they are in the default one: a field that came
    with a newer version stands for what the code did before."""
    default = json.loads(base_config().to_json())
    return {name: default.get(name, {}) | fields for name, fields in config.items()}


def _plain(data: LatentSpec) -> dict[str, Any]:
    return json.loads(json.dumps(dataclasses.asdict(data)))


def _expect_same_head(workdir: epath.Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    there, asked = (Experiment.from_dict(config).head for config in (old, new))
    if asked and not there:
        raise InputError(
            f"the model in {workdir} has no projection head; convert it with --new_head, or train "
            "it with --config.sra.weight=0"
        )
    if there and not asked:
        raise InputError(
            f"the model in {workdir} has a projection head, which this config does not train; set "
            "sra.weight and sra.head"
        )


def _get(tree: Any, path: str) -> Any:
    for name in path.split("."):
        tree = tree.get(name) if isinstance(tree, dict) else None
    return tree
