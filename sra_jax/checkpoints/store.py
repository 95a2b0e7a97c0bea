"""Writes checkpoints in the background, verifies them when they are read, and skips damaged ones.

    with CheckpointStore(workdir, keep=3) as store:
        step, trees = store.restore({"params": abstract_params, "ema": abstract_params})
        store.save(step + 1000, {"params": params, "ema": ema}, metadata={"config": config})

Orbax writes and reads the arrays. This module adds a fingerprint of every leaf, which is compared
after loading; the fallback to an older checkpoint if the newest is damaged; the agreement of all
processes on the checkpoint that they load; and errors of one line.
"""

import contextlib
import json
import logging
import os
import re
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from sra_jax.checkpoints.fingerprint import fingerprint, layout
from sra_jax.checkpoints.orbax_options import KeepPolicy, reading_alone, reason, saving_parts
from sra_jax.core.errors import LOST, InputError, RunError
from sra_jax.core.files import DISK_ADVICE, in_bucket
from sra_jax.core.tree import differences

FORMAT_VERSION = 1
LOSS = re.compile("gloo|coordination", re.IGNORECASE)  # in errors about a lost process

T = TypeVar("T")
PyTree = Any
Abstract = Mapping[str, PyTree] | Callable[[dict[str, Any]], Mapping[str, PyTree]]

_log = logging.getLogger(__name__)
_step_names = ocp.path.step.standard_name_format()


class CheckpointError(InputError):
    """No checkpoint could be found, read or verified; says which and what to do."""


class _DamagedError(Exception):
    """A checkpoint is damaged; the message is the reason."""


class CheckpointStore:
    """The checkpoints of one run, in `<workdir>/checkpoints/<step>`.

    A checkpoint is a set of named pytrees, each readable without the others, and JSON metadata.
    Reading creates and removes nothing, so a store may watch a run that another process trains.
    Only one store may save. In a run of several processes, each makes the same calls.
    """

    def __init__(
        self,
        workdir: epath.PathLike,
        *,
        keep: int = 3,
        keep_every: int | None = None,
        best: Callable[[], int | None] = lambda: None,
    ):
        """Keeps the newest `keep` checkpoints, multiples of `keep_every`, and that of `best()`.

        An old checkpoint is deleted only after a newer one is complete. Raises InputError for a
        count below 1.
        """
        for name, count in {"keep": keep, "keep_every": keep_every}.items():
            if count is not None and count < 1:
                raise InputError(f"{name}={count} keeps no checkpoint, expected at least 1")
        root = epath.Path(workdir).expanduser()
        root = root if root.is_absolute() else root.resolve()  # resolving would break gs://
        self.directory = root / "checkpoints"
        self._damaged: set[int] = set()  # found by reading them
        self._policy = KeepPolicy(keep, keep_every, best, self._damaged)
        self._checkpointer: ocp.training.Checkpointer | None = None  # made by the first save
        self._stat: os.stat_result | None = None  # of the local directory, at the first save
        self._saving: tuple[int, ocp.AsyncResponse[bool]] | None = None

    def __enter__(self) -> "CheckpointStore":
        return self

    def __exit__(self, kind, error, trace) -> None:
        try:
            self.close()
        except RunError as failure:
            if error is None:
                raise
            _log.error("%s", failure)  # and the error that ended the run is raised

    def close(self) -> None:
        """Waits for the save in progress as `wait` does, then frees what saving needed."""
        try:
            self.wait()
        finally:
            if self._checkpointer is not None:
                self._checkpointer.close()
                self._checkpointer = None
            self._stat = None

    def steps(self) -> list[int]:
        """The steps on disk, ascending. Only reading one shows whether it is damaged."""
        return sorted(found.step for found in _step_names.find_all(self.directory))

    def latest_step(self) -> int | None:
        """The newest step on disk that no read has found damaged; None if there is none."""
        return max((step for step in self.steps() if step not in self._damaged), default=None)

    def save(self, step: int, trees: Mapping[str, PyTree], metadata: Mapping[str, Any]) -> bool:
        """Starts to save `trees` (pytrees of `jax.Array` by name) and `metadata` (JSON).

        Returns as soon as the arrays are on the host: they may then be donated. A step that is on
        disk already is kept, unless it is damaged: then it is replaced. Returns whether a save was
        started. Raises RunError if this or the previous save failed.
        """
        self.wait()
        exists = step in self._steps_of_all()
        if exists and not self._is_damaged(step):
            return False
        with self._one_line_errors(step):
            self._expect_same_directory()
            manifest = _seal(
                {
                    "format_version": FORMAT_VERSION,
                    "metadata": metadata,
                    "fingerprint": fingerprint(dict(trees)),
                }
            )
            self._damaged.discard(step)
            response = self._open().save_checkpointables_async(
                step, dict(trees), force=True, overwrite=exists, custom_metadata=manifest
            )
        self._saving = step, response
        return True

    def wait(self) -> None:
        """Returns when the last save is complete on disk. Raises RunError if it failed."""
        if self._saving is None:
            return
        (step, response), self._saving = self._saving, None
        with self._one_line_errors(step):
            response.result()  # also frees the save's thread and open files
            self._expect_same_directory()

    def metadata(self, step: int | None = None) -> dict[str, Any]:
        """The metadata saved with `step`, or with the newest step whose metadata can be read.

        Raises CheckpointError if there is none.
        """
        return self._newest_undamaged(step, self._manifest)["metadata"]

    def names(self, step: int | None = None) -> set[str]:
        """The names of the trees saved with `step`, or with the newest whose metadata can be read.

        Raises CheckpointError if there is none.
        """
        return _tree_names(self._newest_undamaged(step, self._manifest)["fingerprint"])

    def restore(
        self,
        abstract: Abstract,
        step: int | None = None,
        optional: Collection[str] = (),
    ) -> tuple[int, dict[str, PyTree]]:
        """Reads the newest undamaged checkpoint; every leaf is bit for bit what was saved.

        A damaged checkpoint is logged as a warning and skipped.

        Args:
          abstract: pytrees of `jax.ShapeDtypeStruct` by name, any of the trees saved; or a
            function from the checkpoint's metadata to them. A leaf is placed by its `sharding`, or
            without one on the default device (with several processes: on every device), wherever
            it was when it was saved.
          step: reads the checkpoint of this step only.
          optional: names that the result lacks if the checkpoint does.

        Returns:
          The checkpoint's step, and its trees by name.

        Raises:
          CheckpointError: there is no undamaged checkpoint, the trees do not fit it, or a newer
            version of this code wrote it.
        """
        return self._newest_undamaged(
            step, lambda found: (found, self._read_trees(found, abstract, optional))
        )

    def _newest_undamaged(self, step: int | None, read: Callable[[int], T]) -> T:
        """Returns `read(step)`; without a step, `read` of the newest one that is undamaged."""
        self.wait()
        steps = self._steps_of_all()
        if step is not None and step not in steps:
            raise CheckpointError(f"no step {step} in {self.directory}, expected one of {steps}")
        tried = []
        for candidate in steps[::-1] if step is None else [step]:
            try:
                return read(candidate)
            except _DamagedError as damage:
                tried.append(f"step {candidate}: {damage}")
                self._mark_damaged(candidate, damage)
        if not tried:
            raise CheckpointError(f"no checkpoint in {self.directory}, check the workdir or train")
        advice = "name another step" if step is not None else "start in a new workdir"
        raise CheckpointError(
            f"no undamaged checkpoint in {self.directory} ({'; '.join(tried)}), {advice}"
        )

    def _steps_of_all(self) -> list[int]:
        """The steps that the first process sees: a file system may show the others fewer."""
        if jax.process_count() == 1:
            return self.steps()
        steps = np.array(self.steps(), np.int32)
        count = int(multihost_utils.broadcast_one_to_all(np.int32(len(steps))))
        return multihost_utils.broadcast_one_to_all(np.resize(steps, count)).tolist()

    def _manifest(self, step: int) -> dict[str, Any]:
        """Reads what `save` wrote beside the arrays. Raises _DamagedError or CheckpointError."""
        manifest = _agree(lambda: _read_manifest(self.directory / str(step)))
        if manifest["format_version"] > FORMAT_VERSION:
            raise CheckpointError(
                f"step {step} in {self.directory} has format {manifest['format_version']}, this "
                f"version of sra_jax reads up to {FORMAT_VERSION}: install a newer one"
            )
        return manifest

    def _read_trees(
        self, step: int, abstract: Abstract, optional: Collection[str]
    ) -> dict[str, PyTree]:
        """Reads and verifies the trees of one checkpoint. Raises _DamagedError or CheckpointError.

        Every process reads its own part. `_agree` makes damage that one of them finds damage for
        all, so that all fall back to the same step.
        """
        manifest = self._manifest(step)
        saved = manifest["fingerprint"]
        names = _tree_names(saved)
        if callable(abstract):
            abstract = abstract(manifest["metadata"])
        wanted = {k: tree for k, tree in abstract.items() if k in names or k not in optional}
        saved = {path: text for path, text in saved.items() if path.split("/")[0] in wanted}

        # Another model is not damage: an older checkpoint would not fit either.
        there = {path: text.split()[0] for path, text in saved.items()}
        if differing := differences(there, layout(wanted)):
            raise CheckpointError(
                f"step {step} in {self.directory} holds another model or optimiser than asked for "
                f"({_shorten(differing)}), use the config it was trained with"
            )

        if not wanted:  # Orbax would read all trees
            return {}
        # A process does not wait for the others while it reads: one of them may have failed.
        placed, path = jax.tree.map(_placed, wanted), self.directory / str(step)
        with reading_alone():
            trees = _agree(lambda: _or_damaged(lambda: ocp.load_checkpointables(path, placed)))
        # Now all have read their part of the global arrays, and the bits can be compared.
        _agree(lambda: _verify(saved, fingerprint(trees)))
        return trees

    def _is_damaged(self, step: int) -> bool:
        """Returns whether a read found `step` damaged, or its manifest cannot be read now."""
        try:
            self._manifest(step)
        except _DamagedError as damage:
            self._mark_damaged(step, damage)
        return step in self._damaged

    def _mark_damaged(self, step: int, damage: _DamagedError) -> None:
        """Remembers that `step` is damaged, and warns of it once."""
        if step not in self._damaged:
            path = self.directory / str(step)
            _log.warning("checkpoint %s is damaged and not used: %s", path, damage)
        self._damaged.add(step)

    def _open(self) -> ocp.training.Checkpointer:
        """Returns the writer of checkpoints; the first call makes it and the directory."""
        if self._checkpointer is None:
            self._checkpointer = ocp.training.Checkpointer(
                self.directory,
                preservation_policy=self._policy,
                cleanup_tmp_directories=True,
                context=saving_parts(),
            )
        if self._stat is None and not in_bucket(self.directory):
            self._stat = os.stat(self.directory)
        return self._checkpointer

    def _expect_same_directory(self) -> None:
        """Raises FileNotFoundError if the directory was removed, or replaced, since the first save.

        Orbax would make another one and continue without the earlier checkpoints.
        """
        if self._stat is not None and not (
            self.directory.exists() and os.path.samestat(self._stat, os.stat(self.directory))
        ):
            raise FileNotFoundError("the directory was removed")

    @contextlib.contextmanager
    def _one_line_errors(self, step: int) -> Iterator[None]:
        """Turns any error of saving `step` into a RunError of one line."""
        try:
            yield
        except Exception as error:
            # It no longer lists the steps that it would have deleted; a new one looks at the disk.
            self._checkpointer = None
            good = [other for other in self.steps() if other not in self._damaged]
            last = f"the last good step is {good[-1]}" if good else "no step is saved yet"
            why = reason(error)
            lost = jax.process_count() > 1 and LOSS.search(why)
            raise RunError(
                f"saving step {step} to {self.directory} failed ({why}), {last}: "
                f"{LOST if lost else DISK_ADVICE}"
            ) from error


def _seal(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the manifest as JSON gives it back, with a checksum of everything else in it."""
    plain = json.loads(json.dumps({k: v for k, v in manifest.items() if k != "checksum"}))
    return plain | {"checksum": zlib.crc32(json.dumps(plain, sort_keys=True).encode())}


def _read_manifest(path: epath.Path) -> dict[str, Any]:
    """Reads the manifest of a checkpoint in this process. Raises _DamagedError."""
    manifest = _or_damaged(lambda: ocp.checkpointables_metadata(path).custom_metadata)
    if not manifest:
        raise _DamagedError("its metadata is missing")
    if manifest.get("checksum") != _seal(manifest)["checksum"]:
        raise _DamagedError("its metadata was changed")
    return manifest


def _verify(saved: Mapping[str, str], loaded: Mapping[str, str]) -> None:
    """Raises _DamagedError if a fingerprint of `loaded` is not the saved one."""
    if wrong := [path for path, text in loaded.items() if saved[path] != text]:
        raise _DamagedError(f"loaded values differ from the saved ones in {_shorten(wrong)}")


def _tree_names(paths: Iterable[str]) -> set[str]:
    """The first part of every path: "params" of "params/kernel"."""
    return {path.split("/")[0] for path in paths}


def _placed(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """Returns `leaf` with its sharding, or with the default one if it has none."""
    sharding = leaf.sharding
    if sharding is None and jax.process_count() == 1:
        sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    elif sharding is None:  # a copy on every device, because every process must have one
        mesh = jax.sharding.Mesh(jax.devices(), ("all",))
        sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _agree(read: Callable[[], T]) -> T:
    """Returns `read()`; if it raises _DamagedError in one process, all of them raise it."""
    result = damage = None
    try:
        result = read()
    except _DamagedError as error:
        damage = error
    if jax.process_count() > 1:
        failed = multihost_utils.process_allgather(np.array(damage is not None))
        if damage is None and failed.any():
            damage = _DamagedError(f"process {failed.argmax()} cannot read it")
    if damage is not None:
        raise damage
    return result


def _or_damaged(read: Callable[[], T]) -> T:
    """Returns `read()`, and raises any error as _DamagedError: Orbax has many for a bad file."""
    try:
        return read()
    except Exception as error:
        raise _DamagedError(reason(error)) from None


def _shorten(texts: Sequence[str]) -> str:
    """Joins the first three texts, and says how many more there are."""
    more = f" and {len(texts) - 3} more" if len(texts) > 3 else ""
    return "; ".join(texts[:3]) + more
