"""Places to write results to, refused before anything expensive starts rather than after it."""

import contextlib
import uuid
from collections.abc import Iterator
from pathlib import Path

from sra_jax.errors import InputError
from sra_jax.files import in_bucket, lock


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
