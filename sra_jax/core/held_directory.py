"""A directory that is still the one it was."""

import os

from sra_jax.core.files import in_bucket


class HeldDirectory:
    """Notices that a local directory was removed, or another put in its place; knows no buckets.

    It is held open, so that no other takes its number.
    """

    def __init__(self, path: str | os.PathLike):
        self._path = os.fspath(path)
        self._file = None if in_bucket(path) else os.open(self._path, os.O_RDONLY)

    def check(self) -> None:
        """Raises FileNotFoundError if it is not there any more."""
        try:
            if self._file is None or os.path.samestat(os.fstat(self._file), os.stat(self._path)):
                return
        except FileNotFoundError:
            pass
        raise FileNotFoundError("the directory was removed")

    def close(self) -> None:
        """Lets go of it."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
