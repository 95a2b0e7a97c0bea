"""How files are written: whole or not at all, by one process, with one line if the disk fails.

A place that cannot be written to is refused before anything expensive starts.
"""

import contextlib
import errno
import fcntl
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path, PurePath
from typing import TextIO, TypeVar

from sra_jax.core.errors import InputError, RunError

DISK_ADVICE = "make room or mend the disk, and run the same command again"
_DENIED_ADVICE = "mend its permissions, or choose another place"
PathT = TypeVar("PathT", bound=PurePath)


@contextlib.contextmanager
def replacing(path: PathT, scratch: PathT | None = None) -> Iterator[PathT]:
    """A file to write to, which takes the place of `path` when all went well, and is gone
    otherwise.

    It is `scratch`, or one beside `path`, of the same ending, whose name no other process chooses;
    in a bucket it is `path` itself, as that takes a file whole or not at all. What the disk
    refuses, by an OSError, it refuses for `path`.
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
        if unnamed and error.errno:  # without a number it says all in words of its own
            error.filename = os.fspath(path)
        raise


def lock(path: os.PathLike, refusal: str) -> TextIO:
    """The file at `path`, open; no other process locks it until it is closed, be it by the
    process's end. On a file system without locks it is only open.

    Raises:
      InputError: another process has locked it; says `refusal`.
    """
    file = open(path, "a")  # noqa: SIM115 - the caller closes it
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise InputError(refusal) from None
    except OSError:
        pass
    return file


@contextlib.contextmanager
def disk_failures_told(
    path: os.PathLike,
    safe: Callable[[], str],
    advice: str | None = None,
) -> Iterator[None]:
    """Turns what the disk refuses while `path` is written into a RunError of one line: why, then
    what `safe()` says is not lost, and `advice`, or `disk_advice` if not given."""
    try:
        yield
    except OSError as error:
        raise RunError(
            f"cannot write {path}: {error.strerror or error}; {safe()}: "
            f"{advice or disk_advice(error)}"
        ) from error


def disk_advice(error: OSError) -> str:
    """What to do about what the disk has refused."""
    denied = error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)
    return _DENIED_ADVICE if denied else DISK_ADVICE


def in_bucket(path: str | os.PathLike) -> bool:
    """Whether `path` is in an object store, which has neither locks nor directories."""
    return "://" in os.fspath(path)


def writable_file(path: str, ending: str | tuple[str, ...]) -> Path:
    """`path`, for a file that can be written beside and renamed; makes its directory.

    Raises:
      InputError: it has another ending than `ending` (one, or any of several), is a directory, or
        cannot be written.
    """
    expect_local(path)
    if not path.endswith(ending):
        endings = ending if isinstance(ending, str) else ", ".join(ending)
        raise InputError(f"{path!r} does not end in {endings}; name a file that does")
    target = Path(path)
    try:
        if target.is_dir():
            raise InputError(f"cannot write {path}: it is a directory; name a file")
        target.parent.mkdir(parents=True, exist_ok=True)
        _try_to_write(target.parent, target.name)
    except OSError as error:
        raise _refusal(path, error) from None
    return target


def writable_directory(path: str) -> Path:
    """`path`, a directory that files can be written to; makes it. Raises InputError otherwise."""
    expect_local(path)
    if not path:
        raise InputError("the directory to write to is '' (empty); name one, or leave its flag out")
    directory = Path(path)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _try_to_write(directory, "file")
    except OSError as error:
        raise _refusal(path, error) from None
    return directory


@contextlib.contextmanager
def claimed(directory: Path) -> Iterator[None]:
    """Keeps other commands that claim `directory` out of it. Raises InputError: one is in it."""
    refusal = f"another process writes to {directory}; wait for it, or choose another --out"
    with lock(directory / ".lock", refusal):
        yield


def expect_local(path: str) -> None:
    """Raises InputError for a path in a bucket."""
    if in_bucket(path):
        raise InputError(
            f"cannot write {path}: expected a local path; write to one, and copy it there "
            "afterwards"
        )


def _try_to_write(directory: Path, name: str) -> None:
    scratch = directory / f".{name}.{uuid.uuid4().hex[:8]}.tmp"  # other processes try as well
    scratch.touch()
    scratch.unlink()


def _refusal(path: str, error: OSError) -> InputError:
    return InputError(f"cannot write {path}: {error.strerror or error}; choose another place")
