"""Files are written as a whole or not at all, and one process at a time holds a lock."""

import errno
import fcntl
import os

import pytest

from sra_jax.core.errors import InputError
from sra_jax.core.files import atomic_write, in_bucket, lock


def test_a_file_is_replaced_only_when_all_went_well(tmp_path):
    path = tmp_path / "a.npz"
    for text in ("first", "second"):
        with atomic_write(path) as scratch:
            assert (scratch.parent, scratch.suffix) == (tmp_path, ".npz") and scratch != path
            scratch.write_text(text)
            assert path.exists() == (text == "second")
        assert path.read_text() == text
    with pytest.raises(KeyboardInterrupt), atomic_write(path) as scratch:
        scratch.write_text("half")
        raise KeyboardInterrupt
    with pytest.raises(FileNotFoundError), atomic_write(path):
        pass  # nothing was written
    assert path.read_text() == "second" and list(tmp_path.iterdir()) == [path]


def test_several_may_replace_one_file_at_once(tmp_path):
    path = tmp_path / "a"
    with atomic_write(path) as one:
        with atomic_write(path) as other:
            one.write_text("one")
            other.write_text("other")
        assert path.read_text() == "other"
    assert path.read_text() == "one" and list(tmp_path.iterdir()) == [path]


def test_the_scratch_file_may_lie_elsewhere(tmp_path):
    (tmp_path / "partial").mkdir()
    with atomic_write(tmp_path / "a", scratch=tmp_path / "partial" / "b") as scratch:
        assert scratch == tmp_path / "partial" / "b"
        scratch.write_text("text")
    assert (tmp_path / "a").read_text() == "text" and not scratch.exists()


def test_a_path_as_long_as_may_be_tried_can_be_replaced(tmp_path):
    """`writable_file` tries a name that is 14 characters longer."""
    path = tmp_path / f"{'x' * 237}.npz"
    with atomic_write(path) as scratch:
        scratch.write_text("text")
    assert path.exists()


def test_one_at_a_time_holds_a_lock(tmp_path):
    refusal = rf"\(process {os.getpid()}\) second"
    with lock(tmp_path / "lock", "first"), pytest.raises(InputError, match=refusal):
        lock(tmp_path / "lock", "second")
    lock(tmp_path / "lock", "third").close()


def test_without_locks_nothing_is_refused(tmp_path, monkeypatch):
    def unsupported(*arguments):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", unsupported)
    lock(tmp_path / "lock", "refused").close()


def test_buckets_are_told_from_disks(tmp_path):
    assert in_bucket("gs://bucket/run") and not in_bucket(tmp_path) and not in_bucket("a:/b")
