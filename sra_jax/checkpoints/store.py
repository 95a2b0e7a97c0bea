"""Checkpoints that are written in the background, checked when read, and never trusted blindly.

    with CheckpointStore(workdir, keep=3) as store:
        step, trees = store.restore({"params": abstract_params, "ema": abstract_params})
        store.save(step + 1000, {"params": params, "ema": ema}, metadata={"config": config})

Orbax writes and reads the arrays. This module adds what it leaves open: a fingerprint of every leaf
that is compared on loading, the way back to an older checkpoint when the newest is damaged, and
failures told in one line.
"""

import contextlib
import gc
import json
import logging
import re
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from sra_jax.checkpoints.fingerprint import fingerprint, layout
from sra_jax.checkpoints.orbax_options import (
    drop_echoes,
    muted,
    reading_alone,
    reason,
    splitting_only_what_is_large,
)
from sra_jax.core.errors import LOST, InputError, RunError
from sra_jax.core.files import DISK_ADVICE
from sra_jax.core.held_directory import HeldDirectory

FORMAT_VERSION = 1
LOSS = re.compile("gloo|coordination", re.IGNORECASE)  # who says that a process is lost

T = TypeVar("T")
PyTree = Any

_log = logging.getLogger(__name__)
_step_names = ocp.path.step.standard_name_format()


class CheckpointError(InputError):
    """A checkpoint could not be found, read or believed; says which and what to do."""


class _DamagedError(Exception):
    """One checkpoint is of no use; the message is the reason."""


class CheckpointStore:
    """The checkpoints of one run, in `<workdir>/checkpoints/<step>`.

    A checkpoint is a set of named pytrees, each readable without the others, and JSON metadata.
    Reading neither creates nor removes anything, so a store may watch a run that another process
    trains; only one may save. In a run of several processes each makes the same calls.
    """

    def __init__(
        self,
        workdir: epath.PathLike,
        *,
        keep: int = 3,
        keep_every: int | None = None,
        best: Callable[[], int | None] = lambda: None,
    ):
        """Keeps the newest `keep` checkpoints, forever every multiple of `keep_every` steps, and
        that of step `best()`.

        An old checkpoint is deleted only after a newer one is complete. Raises InputError for a
        count below 1.
        """
        for name, count in {"keep": keep, "keep_every": keep_every}.items():
            if count is not None and count < 1:
                raise InputError(f"{name}={count} keeps no checkpoint, expected at least 1")
        root = epath.Path(workdir).expanduser()
        root = root if root.is_absolute() else root.resolve()  # resolving would break gs://
        self.directory = root / "checkpoints"
        self._damaged: set[int] = set()
        self._keep = _Keep(keep, keep_every, best, self._damaged)
        self._checkpointer: ocp.training.Checkpointer | None = None  # made by the first save
        self._held: HeldDirectory | None = None  # likewise
        self._saving: tuple[int, ocp.AsyncResponse[bool]] | None = None

    def __enter__(self) -> "CheckpointStore":
        return self

    def __exit__(self, kind, error, trace) -> None:
        try:
            self.close()
        except RunError as failure:
            if error is None:
                raise
            _log.error("%s", failure)  # the error that ended the run is the one to raise

    def close(self) -> None:
        """Waits as `wait` does, then frees what saving needed."""
        try:
            self.wait()
        finally:
            if self._checkpointer is not None:
                self._checkpointer.close()
                self._checkpointer = None
            if self._held is not None:
                self._held.close()
                self._held = None

    def steps(self) -> list[int]:
        """The steps on disk, ascending. Whether one is undamaged is known only by reading it."""
        return sorted(found.step for found in _step_names.find_all(self.directory))

    def latest_step(self) -> int | None:
        """The newest step on disk that no read has found damaged; None where there is none."""
        return max((step for step in self.steps() if step not in self._damaged), default=None)

    def save(self, step: int, trees: Mapping[str, PyTree], metadata: Mapping[str, Any]) -> bool:
        """Starts to save `trees` (name -> pytree of `jax.Array`) and `metadata` (JSON).

        Returns as soon as the arrays are on the host: they may then be donated. A step that is
        there already is left alone, unless it is damaged: then it is replaced. Returns whether a
        save was started. Raises RunError if this or the previous save failed.
        """
        self.wait()
        exists = step in self._steps_of_all()
        if exists and not self._is_damaged(step):
            return False
        with self._failing_clearly(step):
            if self._held is not None:
                self._held.check()
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
        """Returns when what was saved is complete on disk. Raises RunError if it failed."""
        if self._saving is None:
            return
        (step, response), self._saving = self._saving, None
        with self._failing_clearly(step):
            response.result()  # unasked, it would keep a thread and three open files for good
            self._held.check()  # Orbax would make another and go on

    def metadata(self, step: int | None = None) -> dict[str, Any]:
        """The metadata saved with `step`, or with the newest step whose metadata can be read.

        Raises CheckpointError if there is none.
        """
        return self._read(step, lambda found: _together(lambda: self._manifest(found))["metadata"])

    def names(self, step: int | None = None) -> set[str]:
        """The names of the trees saved with `step`, or with the newest whose metadata can be read.

        Raises CheckpointError if there is none.
        """
        return self._read(
            step,
            lambda found: {
                path.split("/")[0]
                for path in _together(lambda: self._manifest(found))["fingerprint"]
            },
        )

    def restore(
        self,
        abstract: Mapping[str, PyTree],
        step: int | None = None,
        optional: Collection[str] = (),
    ) -> tuple[int, dict[str, PyTree]]:
        """The step and the named trees of the newest undamaged checkpoint, or of `step` only.

        `abstract`: name -> pytree of `jax.ShapeDtypeStruct`, any subset of the names saved; only
        those are read. Trees named in `optional` are left out of the result where the checkpoint
        lacks them. A leaf lands on its `sharding`, whatever it was saved from, or without one
        on the default device (with several processes: on every device). Every leaf is bit for bit
        what was saved. A damaged checkpoint is logged as a warning and passed over. Raises
        CheckpointError if nothing undamaged is there, if the trees do not fit the checkpoint, or if
        a newer version of this code wrote it.
        """
        return self._read(step, lambda found: (found, self._load(found, abstract, optional)))

    def _read(self, step: int | None, read: Callable[[int], T]) -> T:
        """`read(step)`, or without a step that of the newest step it can read."""
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
                self._report(candidate, damage)
        if not tried:
            raise CheckpointError(f"no checkpoint in {self.directory}, check the workdir or train")
        advice = "name another step" if step is not None else "start in a new workdir"
        raise CheckpointError(
            f"no undamaged checkpoint in {self.directory} ({'; '.join(tried)}), {advice}"
        )

    def _steps_of_all(self) -> list[int]:
        """The steps on disk as the first process sees them: a file system may show others less."""
        if jax.process_count() == 1:
            return self.steps()
        steps = np.array(self.steps(), np.int32)
        count = int(multihost_utils.broadcast_one_to_all(np.int32(len(steps))))
        return multihost_utils.broadcast_one_to_all(np.resize(steps, count)).tolist()

    def _path(self, step: int) -> epath.Path:
        return self.directory / str(step)

    def _report(self, step: int, damage: _DamagedError) -> None:
        if step not in self._damaged:
            _log.warning("checkpoint %s is damaged and not used: %s", self._path(step), damage)
        self._damaged.add(step)

    def _is_damaged(self, step: int) -> bool:
        """Whether a read found `step` damaged, or its manifest does not read now."""
        try:
            _together(lambda: self._manifest(step))
        except _DamagedError as damage:
            self._report(step, damage)
        return step in self._damaged

    def _manifest(self, step: int) -> dict[str, Any]:
        """What `save` wrote beside the arrays. Raises _DamagedError or CheckpointError."""
        path = self._path(step)
        manifest = _or_damaged(lambda: ocp.checkpointables_metadata(path).custom_metadata)
        if not manifest:
            raise _DamagedError("its metadata is missing")
        if manifest.get("checksum") != _seal(manifest)["checksum"]:
            raise _DamagedError("its metadata was changed")
        if manifest["format_version"] > FORMAT_VERSION:
            raise CheckpointError(
                f"step {step} in {self.directory} has format {manifest['format_version']}, this "
                f"version of sra_jax reads up to {FORMAT_VERSION}: install a newer one"
            )
        return manifest

    def _load(
        self, step: int, abstract: Mapping[str, PyTree], optional: Collection[str]
    ) -> dict[str, PyTree]:
        saved, trees = _together(lambda: self._load_own(step, abstract, optional))
        _together(lambda: _compare(saved, fingerprint(trees)))
        return trees

    def _load_own(
        self, step: int, abstract: Mapping[str, PyTree], optional: Collection[str]
    ) -> tuple[dict[str, str], dict[str, PyTree]]:
        """The fingerprint as it was saved, and the trees as far as they lie in this process."""
        everything = self._manifest(step)["fingerprint"]
        names = {path.split("/")[0] for path in everything}
        abstract = {k: tree for k, tree in abstract.items() if k in names or k not in optional}
        saved = {path: text for path, text in everything.items() if path.split("/")[0] in abstract}
        there = {path: text.split()[0] for path, text in saved.items()}
        if differences := _differences(there, layout(dict(abstract))):
            raise CheckpointError(
                f"step {step} in {self.directory} holds another model or optimiser than asked for "
                f"({_shorten(differences)}), use the config it was trained with"
            )
        placed = jax.tree.map(_placed, dict(abstract))
        with reading_alone():
            return saved, _or_damaged(lambda: ocp.load_checkpointables(self._path(step), placed))

    def _open(self) -> ocp.training.Checkpointer:
        if self._checkpointer is None:
            drop_echoes()
            self._checkpointer = ocp.training.Checkpointer(
                self.directory,
                preservation_policy=self._keep,
                cleanup_tmp_directories=True,
                context=splitting_only_what_is_large(),
            )
        if self._held is None:
            self._held = HeldDirectory(self.directory)
        return self._checkpointer

    @contextlib.contextmanager
    def _failing_clearly(self, step: int) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            # Its list of steps already lacks those it would have deleted; the next one looks anew.
            self._checkpointer = None
            good = [other for other in self.steps() if other not in self._damaged]
            last = f"the last good step is {good[-1]}" if good else "no step is saved yet"
            why = reason(error)
            lost = jax.process_count() > 1 and LOSS.search(why)
            advice = LOST if lost else DISK_ADVICE
            raise RunError(
                f"saving step {step} to {self.directory} failed ({why}), {last}: {advice}"
            ) from error


class _Keep:
    """A preservation policy for Orbax, which puts the checkpoint being saved last."""

    def __init__(
        self,
        keep: int,
        keep_every: int | None,
        best: Callable[[], int | None],
        damaged: set[int],
    ):
        self._keep, self._keep_every = keep, keep_every
        self._best, self._damaged = best, damaged

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        del context
        steps = [checkpoint.step for checkpoint in checkpoints]
        kept = {step for step in steps if step > steps[-1]}  # left by a run that went further
        kept.update([step for step in steps if step not in self._damaged][-self._keep :])
        kept.add(self._best())
        if self._keep_every:
            kept.update(step for step in steps if step % self._keep_every == 0)
        return [step in kept for step in steps]


def _seal(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest as JSON gives it back, with a checksum of the rest in place of its own."""
    plain = json.loads(json.dumps({k: v for k, v in manifest.items() if k != "checksum"}))
    return plain | {"checksum": zlib.crc32(json.dumps(plain, sort_keys=True).encode())}


def _placed(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    sharding = leaf.sharding or _everywhere()
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _everywhere() -> jax.sharding.Sharding:
    """The default device; with several processes, a copy on every device, as each must have one."""
    if jax.process_count() == 1:
        return jax.sharding.SingleDeviceSharding(jax.devices()[0])
    mesh = jax.sharding.Mesh(jax.devices(), ("all",))
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())


def _together(read: Callable[[], T]) -> T:
    """`read()`, but where it finds damage in one process, all of them raise _DamagedError."""
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


def _compare(saved: Mapping[str, str], loaded: Mapping[str, str]) -> None:
    wrong = [path for path, text in loaded.items() if saved[path] != text]
    if wrong:
        raise _DamagedError(f"loaded values differ from the saved ones in {_shorten(wrong)}")


def _differences(there: Mapping[str, str], asked: Mapping[str, str]) -> list[str]:
    return [
        f"{path} is {there.get(path, 'absent')} there, {asked.get(path, 'absent')} here"
        for path in sorted(there.keys() | asked.keys())
        if there.get(path) != asked.get(path)
    ]


def _shorten(texts: Sequence[str]) -> str:
    more = f" and {len(texts) - 3} more" if len(texts) > 3 else ""
    return "; ".join(texts[:3]) + more


def _or_damaged(read: Callable[[], T]) -> T:
    """`read()`, with whatever it raises as damage: Orbax has no one type for what a file lacks."""
    with muted():
        try:
            return read()
        except Exception as error:
            found = reason(error)
        gc.collect()
    raise _DamagedError(found)
