"""Writes files atomically, locks directories, and turns disk failures into one-line errors.

Commands call `writable_file` or `writable_directory` before anything expensive starts.
"""

import contextlib
import errno
import fcntl
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path, PurePath
from typing import BinaryIO, TypeVar

from sra_jax.core.errors import InputError, RunError

DISK_ADVICE = "make room or mend the disk, and run the same command again"
_DENIED_ADVICE = "mend its permissions, or choose another place"
PathT = TypeVar("PathT", bound=PurePath)


@contextlib.contextmanager
def atomic_write(path: PathT, scratch: PathT | None = None) -> Iterator[PathT]:
    """Yields a scratch file to write, which replaces `path` at the end and is deleted on an error.

    It is `scratch`, or else a file with a unique name and the same suffix, beside `path`. In a
    bucket it is `path` itself, because an object is written as a whole or not at all. An OSError of
    the scratch file names `path`.
    """
    if in_bucket(path):
        yield path
        return
    if scratch is None:
        scratch = path.with_name(f".{path.stem}.{uuid.uuid4().hex[:8]}.tmp{path.suffix}")
    try:
        yield scratch
        with open(scratch, "rb") as file:
            os.fsync(file.fileno())
        scratch.replace(path)
    except BaseException as error:
        scratch.unlink(missing_ok=True)
        unnamed = isinstance(error, OSError) and error.filename in (None, os.fspath(scratch))
        if unnamed and error.errno:  # an OSError without a number has a message of its own
            error.filename = os.fspath(path)
        raise


def lock(path: os.PathLike, refusal: str) -> BinaryIO:
    """Opens and locks the file at `path`; closing it, or the end of the process, unlocks it.

    The file holds the process id of its owner. On a file system without locks it is only opened.

    Raises:
      InputError: another process holds the lock. The message names it, then says `refusal`:
        what it does with the path, and what the user can do.
      OSError: the file cannot be opened.
    """
    file = open(path, "a+b", buffering=0)  # noqa: SIM115 - the caller closes it
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        with file:
            file.seek(0)
            owner = file.read().decode(errors="replace") or "unknown"
        raise InputError(f"another command (process {owner}) {refusal}") from None
    except OSError:
        return file
    with contextlib.suppress(OSError):  # on a full disk the lock has no owner's name, but holds
        file.truncate(0)
        file.write(str(os.getpid()).encode())
    return file


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Keeps other commands that lock `directory` out. Raises InputError if one already has it."""
    with lock(directory / ".lock", f"writes to {directory}; wait for it, or choose another --out"):
        yield


@contextlib.contextmanager
def disk_failures_told(
    path: os.PathLike,
    safe: Callable[[], str],
    advice: str | None = None,
) -> Iterator[None]:
    """Turns an OSError while `path` is written into a RunError of one line.

    The message is the cause, what `safe()` says is not lost, and `advice` or else `disk_advice`.
    """
    try:
        yield
    except OSError as error:
        raise RunError(
            f"cannot write {path}: {error.strerror or error}; {safe()}: "
            f"{advice or disk_advice(error)}"
        ) from error


def disk_advice(error: OSError) -> str:
    """Returns what a user can do about an error of the disk."""
    denied = error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)
    return _DENIED_ADVICE if denied else DISK_ADVICE


def in_bucket(path: str | os.PathLike) -> bool:
    """Returns whether `path` is in an object store, which has neither locks nor directories."""
    return "://" in os.fspath(path)


def writable_file(path: str, ending: str | tuple[str, ...]) -> Path:
    """Returns `path` as a local file that can be written; makes its directory.

    Raises:
      InputError: the name does not end in `ending` (one, or any of several), or the file is a
        directory or cannot be written.
    """
    expect_local(path)
    if not path.endswith(ending):
        endings = ending if isinstance(ending, str) else ", ".join(ending)
        raise InputError(f"{path!r} does not end in {endings}; name a file that does")
    target = Path(path)
    with _refusing(path):
        if target.is_dir():
            raise InputError(f"cannot write {path}: it is a directory; name a file")
        _try_to_write(target.parent, target.name)
    return target


def writable_directory(path: str) -> Path:
    """Returns `path` as a local directory that files can be written to; makes it.

    Raises:
      InputError: it is empty, in a bucket, or cannot be written to.
    """
    expect_local(path)
    if not path:
        raise InputError("the directory to write to is '' (empty); name one, or leave its flag out")
    make_writable(Path(path))
    return Path(path)


def make_writable(directory: PathT) -> None:
    """Makes a directory, local or in a bucket. Raises InputError if it cannot be written to."""
    with _refusing(directory):
        _try_to_write(directory, "file")


def expect_local(path: str) -> None:
    """Raises InputError for a path in a bucket."""
    if in_bucket(path):
        raise InputError(
            f"cannot write {path}: expected a local path; write to one, and copy it there "
            "afterwards"
        )


def _try_to_write(directory: PathT, name: str) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    scratch = directory / f".{name}.{uuid.uuid4().hex[:8]}.tmp"  # unique: other processes try too
    scratch.write_bytes(b"")
    scratch.unlink()


@contextlib.contextmanager
def _refusing(path: str | os.PathLike) -> Iterator[None]:
    """Turns an OSError into an InputError."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"cannot write {path}: {reason}; choose another place") from None
