"""Writes a latent data set shard by shard, by several processes; a kill loses only begun shards.

Until the set is complete it is in `OUT.encoding` beside `OUT`, on a disk that all processes share:

    plan.json     what is being written; a run that would write something else is refused
    set/          the record files; the directory becomes `OUT` by one rename
    reports/      for each finished record file: class counts, skipped images, SHA-256
    partial/      files being written
    failures/     for each process that failed, its error; the other processes stop too

The processes wait for each other by looking at these files, not in a barrier: so a process that
fails can tell the others why.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sra_jax.core.errors import InputError, RunError
from sra_jax.core.files import atomic_write, disk_advice, disk_failures_told, in_bucket, lock
from sra_jax.core.tree import differences
from sra_jax.data.records import (
    Batch,
    holds_latents,
    read_spec,
    shard_name,
    tool_version,
    write_metadata,
    write_shard,
)
from sra_jax.data.spec import LatentSpec

RECORD_OVERHEAD = 160  # bytes of a record beside its moments: names, label, ArrayRecord's header
POLL_SECONDS = 1.0


class ShardedSet:
    """A data set that is being written. Every process has its own object for the same set.

    Order of calls: `is_whole`; inside `locked`: `begin`, and `write` for each shard that is left.
    Then one process calls `await_all`, `finish` and `clean`, the others call `await_finish`.
    """

    def __init__(self, out: str | os.PathLike, spec: LatentSpec, num_shards: int, inputs: str):
        """Makes the object; touches no file.

        Args:
            out: directory of the finished set.
            spec: its metadata, without what the writer fills in.
            num_shards: number of record files.
            inputs: identity of what is encoded; a run resumes only if it is unchanged.

        Raises:
            InputError: `out` is not on a disk.
        """
        if in_bucket(out):
            raise InputError(f"cannot write to {out}; write to a disk and copy the folder there")
        self.out = Path(os.path.abspath(out))
        self.scratch = self.out.with_name(f"{self.out.name}.encoding")
        self.num_shards = num_shards
        self._spec = dataclasses.replace(spec, tool_version=tool_version())
        self._inputs = inputs

    def is_whole(self) -> bool:
        """Whether `out` holds the finished set.

        Raises:
            InputError: `out` holds something else.
        """
        if not self.out.exists() or (self.out.is_dir() and not any(self.out.iterdir())):
            return False
        if not holds_latents(self.out):
            raise InputError(f"{self.out} exists already; remove it or name another directory")
        there = dataclasses.replace(read_spec(self.out), tool_version=self._spec.tool_version)
        differing = differences(_recipe(there), _recipe(self._spec))
        if differing:
            raise InputError(
                f"{self.out} holds another data set: {', '.join(differing)}; remove it or name "
                "another directory"
            )
        return True

    @contextlib.contextmanager
    def locked(self, process: int) -> Iterator[None]:
        """Locks the set for this process, and reports an error raised inside to the others.

        Raises:
            InputError: another run with the same process number has locked it, or the disk cannot
                be written to.
        """
        in_use = f"is writing {self.out}; wait for it, stop it, or choose another --out"
        try:
            for name in ("set", "reports", "partial", "failures"):
                (self.scratch / name).mkdir(parents=True, exist_ok=True)
            held = lock(self.scratch / f"lock-{process}", in_use)
        except OSError as error:
            raise InputError(
                f"cannot write {self.scratch}: {error.strerror}; {disk_advice(error)}"
            ) from None
        failures = self.scratch / "failures"
        with held:
            if process == 0:  # before others look: all processes meet before the first shard
                for old in failures.iterdir():
                    old.unlink(missing_ok=True)
            try:
                yield
            except BaseException as error:
                with contextlib.suppress(OSError):  # the disk may be what failed
                    (failures / str(process)).write_text(str(error))
                raise

    def begin(self, own: Iterable[int]) -> list[int]:
        """The shards of `own` that are still to be written, damaged ones included.

        Raises:
            InputError: another set was begun here, or its plan is damaged; names what differs.
        """
        self._settle_plan()
        return [index for index in own if not self._is_sound(index)]

    def check_space(self, record_count: int) -> str:
        """Describes in one line the disk space that a set of `record_count` records needs.

        Raises:
            InputError: the disk has less.
        """
        total = record_count * record_bytes(self._spec)
        written = sum(path.stat().st_size for path in (self.scratch / "set").iterdir())
        free = shutil.disk_usage(self.scratch).free
        if total - written > free:
            raise InputError(
                f"{self.out} needs {_say_bytes(total - written)} more, but its disk has only "
                f"{_say_bytes(free)} free; make room or choose another --out"
            )
        return f"{_say_bytes(total)}, {_say_bytes(written)} of it written; {_say_bytes(free)} free"

    def write(self, index: int, batches: Iterable[Batch], skipped: list[str]) -> None:
        """Writes one shard.

        Args:
            index: of the shard.
            batches: its records.
            skipped: names of the images left out, complete once `batches` are exhausted.

        Raises:
            InputError: a batch does not fit the spec.
            RunError: the disk is full, or cannot be written to. Finished shards are safe.
        """
        partial = self.scratch / "partial" / shard_name(index, self.num_shards)
        with disk_failures_told(partial, self._progress):
            with atomic_write(self._shard(index), scratch=partial):
                counts = write_shard(partial, self._spec, batches)
                digest = _sha256_on_disk(partial)
            report = {"class_counts": counts.tolist(), "skipped": skipped, "sha256": digest}
            _write_json(self._report(index), report)

    def check_others(self) -> None:
        """Raises RunError if a process has failed."""
        with contextlib.suppress(FileNotFoundError):  # the set is finished and cleaned up
            for failure in (self.scratch / "failures").iterdir():
                raise RunError(
                    f"process {failure.name} ended: {failure.read_text()}; {self._progress()}: "
                    "mend that, and run the same command again"
                )

    def await_all(self) -> None:
        """Waits until all shards of all processes are finished. Raises RunError if one fails."""
        while self._finished() < self.num_shards and not holds_latents(self.out):
            self._wait()

    def await_finish(self) -> None:
        """Waits until another process has finished the set. Raises RunError if one fails."""
        while not holds_latents(self.out):
            self._wait()

    def finish(self) -> LatentSpec:
        """Makes the set from its finished shards. It appears at `out` by one rename.

        Returns:
            The spec as stored.

        Raises:
            InputError: all images were skipped.
            RunError: the disk is full, or cannot be written to. All shards are safe.
        """
        reports = [json.loads(self._report(i).read_text()) for i in range(self.num_shards)]
        counts = np.array([report["class_counts"] for report in reports])
        skipped = tuple(name for report in reports for name in report["skipped"])
        if not counts.any():
            raise InputError(f"all {len(skipped)} images were skipped, the first: {skipped[0]}")
        spec = dataclasses.replace(self._spec, skipped=skipped)
        with disk_failures_told(self.out, self._progress):
            spec = write_metadata(self.scratch / "set", spec, counts)
            (self.scratch / "set").rename(self.out)
        return spec

    def clean(self) -> None:
        """Removes the scratch directory of a finished set."""
        shutil.rmtree(self.scratch, ignore_errors=True)

    def _settle_plan(self) -> None:
        path = self.scratch / "plan.json"
        plan = _recipe(self._spec) | {"shards": self.num_shards, "inputs": self._inputs}
        if not path.exists():
            with disk_failures_told(path, self._progress):
                _write_json(path, plan)
        try:
            begun = json.loads(path.read_text())
            if not isinstance(begun, dict):
                raise ValueError("not a plan")
        except (OSError, ValueError) as error:
            raise InputError(
                f"cannot read {path} ({error}); remove {self.scratch}, and run the same command "
                "again"
            ) from error
        if differing := differences(begun, plan):
            raise InputError(
                f"{self.scratch} holds the beginning of another data set: {', '.join(differing)}; "
                "finish that one, remove it, or choose another --out"
            )

    def _wait(self) -> None:
        self.check_others()
        time.sleep(POLL_SECONDS)

    def _finished(self) -> int:
        """The number of finished shards, of all processes."""
        return sum(self._report(index).exists() for index in range(self.num_shards))

    def _progress(self) -> str:
        return f"{self._finished()} of {self.num_shards} shards are safe in {self.scratch}"

    def _is_sound(self, index: int) -> bool:
        """Whether a shard is finished and unchanged. If it is not, removes its report."""
        try:
            report = json.loads(self._report(index).read_text())
            if _sha256_on_disk(self._shard(index)) == report["sha256"]:
                return True
        except (OSError, ValueError, KeyError, TypeError):
            pass
        self._report(index).unlink(missing_ok=True)
        return False

    def _shard(self, index: int) -> Path:
        return self.scratch / "set" / shard_name(index, self.num_shards)

    def _report(self, index: int) -> Path:
        return self.scratch / "reports" / f"{index:05d}.json"


def record_bytes(spec: LatentSpec) -> int:
    """Bytes on disk of one record, at most."""
    return int(np.prod(spec.moments_shape)) * np.dtype(spec.dtype).itemsize + RECORD_OVERHEAD


def _recipe(spec: LatentSpec) -> dict[str, Any]:
    """The fields of `spec` that decide the contents, as JSON returns them."""
    counted = ("num_examples", "class_counts", "skipped")
    fields = dataclasses.asdict(spec)
    return json.loads(json.dumps({k: v for k, v in fields.items() if k not in counted}))


def _write_json(path: Path, value: Any) -> None:
    """Writes `value` atomically, even if several processes write `path` at once."""
    with atomic_write(path) as scratch:
        scratch.write_text(json.dumps(value))


def _sha256_on_disk(path: Path) -> str:
    """SHA-256 of a file, after flushing the file to disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def _say_bytes(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"
