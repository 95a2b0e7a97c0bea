"""A latent data set written shard by shard, by several processes; a kill costs only begun shards.

Until the set is whole it lies in `OUT.encoding` beside `OUT`, on a disk that every process sees:

    plan.json     what is being written; a run that would write something else is refused
    set/          the record files, which become `OUT` by one rename
    reports/      for each finished record file its class counts, what was skipped, its SHA-256
    partial/      files being written
    failures/     for each process that failed, why: the others stop too
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
from typing import Any, BinaryIO

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

# Beside the moments, of one record: field names and label in it, and ArrayRecord's own header.
RECORD_OVERHEAD = 160
POLL_SECONDS = 1.0


class ShardedSet:
    """A data set in the making; every process has its own object for the same one.

    In order: `is_whole`, then inside `claimed` one `begin`, a `write` for each shard that is left,
    `await_all`, and by one process `finish` and `clean`.
    """

    def __init__(self, out: str | os.PathLike, spec: LatentSpec, num_shards: int, inputs: str):
        """Touches nothing yet.

        Args:
            out: where the set is to be.
            spec: its metadata, but for what the writer fills in.
            num_shards: of how many record files it consists.
            inputs: identity of what is encoded; a run goes on only where it is the same.

        Raises:
            InputError: `out` is no path on a disk.
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
    def claimed(self, process: int) -> Iterator[None]:
        """Keeps a second run with the same process number out while entered; tells the other
        processes of an error that leaves it.

        Raises:
            InputError: there is one, or the disk cannot be written to.
        """
        with self._lock(process):
            failures = self.scratch / "failures"
            if process == 0:  # which no other outruns: they meet before the first shard
                for old in failures.iterdir():
                    old.unlink(missing_ok=True)
            try:
                yield
            except BaseException as error:
                with contextlib.suppress(OSError):  # the disk may be what failed
                    (failures / str(process)).write_text(str(error))
                raise

    def begin(self, own: Iterable[int]) -> list[int]:
        """Which of the shards `own` are still to be written; damaged ones are among them.

        Raises:
            InputError: what was begun here is another set, or damaged; names what differs.
        """
        self._settle_plan()
        return [index for index in own if not self._is_sound(index)]

    def check_space(self, record_count: int) -> str:
        """One line on the disk space that the set, of at most `record_count` records, needs.

        Raises:
            InputError: it is not there.
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
        """Writes one shard. `skipped` is what `batches`, once exhausted, have left out.

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

    def finished(self) -> int:
        """How many shards, of all processes, are finished."""
        return sum(self._report(index).exists() for index in range(self.num_shards))

    def check_others(self) -> None:
        """Raises RunError if a process has failed."""
        with contextlib.suppress(FileNotFoundError):  # finished and cleaned up
            for failure in (self.scratch / "failures").iterdir():
                raise RunError(
                    f"process {failure.name} ended: {failure.read_text()}; {self._progress()}: "
                    "mend that, and run the same command again"
                )

    def await_all(self) -> None:
        """Returns when the shards of all processes are finished, or raises RunError likewise."""
        while self.finished() < self.num_shards and not holds_latents(self.out):
            self.check_others()
            time.sleep(POLL_SECONDS)

    def await_finish(self) -> None:
        """Returns when another process has finished the set, or raises RunError likewise."""
        while not holds_latents(self.out):
            self.check_others()
            time.sleep(POLL_SECONDS)

    def finish(self) -> LatentSpec:
        """Makes the set out of its finished shards; it appears whole at `out`, by one rename.

        Returns:
            Its spec.

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
        """Removes what the finished set has left beside it."""
        shutil.rmtree(self.scratch, ignore_errors=True)

    def _lock(self, process: int) -> BinaryIO:
        in_use = f"is writing {self.out}; wait for it, stop it, or choose another --out"
        try:
            for name in ("set", "reports", "partial", "failures"):
                (self.scratch / name).mkdir(parents=True, exist_ok=True)
            return lock(self.scratch / f"lock-{process}", in_use)
        except OSError as error:
            raise InputError(
                f"cannot write {self.scratch}: {error.strerror}; {disk_advice(error)}"
            ) from None

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

    def _progress(self) -> str:
        return f"{self.finished()} of {self.num_shards} shards are safe in {self.scratch}"

    def _is_sound(self, index: int) -> bool:
        """Whether a shard is finished and as it was written; if not, nobody is told that it is."""
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
    """Bytes on disk of one record, rounded up."""
    return int(np.prod(spec.moments_shape)) * np.dtype(spec.dtype).itemsize + RECORD_OVERHEAD


def _recipe(spec: LatentSpec) -> dict[str, Any]:
    """What decides the contents, as JSON gives it back."""
    counted = ("num_examples", "class_counts", "skipped")
    fields = dataclasses.asdict(spec)
    return json.loads(json.dumps({k: v for k, v in fields.items() if k not in counted}))


def _write_json(path: Path, value: Any) -> None:
    """All of it or nothing, under that name, even if several processes do it at once."""
    with atomic_write(path) as scratch:
        scratch.write_text(json.dumps(value))


def _sha256_on_disk(path: Path) -> str:
    """Digest of a file, which is on disk, not only in memory, when this returns."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def _say_bytes(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"
