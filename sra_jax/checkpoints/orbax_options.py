"""Orbax's manners: what it logs, how it fails, whom it waits for, what memory it takes."""

import contextlib
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp


@contextlib.contextmanager
def saving_leanly(trees: Mapping[str, Any]) -> Iterator[None]:
    """Within it, `trees` are saved with no more memory than their largest leaf beside them, and
    not compressed, which float32 weights hardly are. Wait for the save before leaving."""
    largest = max(leaf.nbytes for leaf in jax.tree.leaves(dict(trees)))
    with ocp.Context(  # its limit must lie above the largest leaf
        memory_options=ocp.options.MemoryOptions(write_concurrent_bytes=largest + 2**20),
        array_options=ocp.options.ArrayOptions(
            saving=ocp.options.ArrayOptions.Saving(use_compression=False)
        ),
    ):
        yield


def splitting_only_what_is_large() -> ocp.Context:
    """Of an array that several devices hold, each writes a part. To cut it a program is compiled
    for each shape and device, which the first save waits for: where the parts would be smaller than
    1 MiB, one device writes all of it."""
    return ocp.Context(
        array_options=ocp.options.ArrayOptions(
            saving=ocp.options.ArrayOptions.Saving(min_slice_bytes_for_replica_parallel=2**20)
        )
    )


def reading_alone() -> contextlib.AbstractContextManager:
    """Within it, Orbax does not wait for the other processes, of which one may have failed."""
    process = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=process, active_processes={process}, barrier_sync_key_prefix=str(process)
    )
    return ocp.Context(multiprocessing_options=alone)


@contextlib.contextmanager
def muted() -> Iterator[None]:
    """Within it, the tasks that Orbax left behind die without telling the same error once more."""
    tasks, hook = logging.getLogger("asyncio"), sys.unraisablehook
    tasks.disabled, sys.unraisablehook = True, lambda _: None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            yield
    finally:
        tasks.disabled, sys.unraisablehook = False, hook


def drop_echoes() -> None:
    """A save that fails closes its event loop; what TensorStore's threads still want to tell that
    loop is not worth a traceback."""

    def is_echo(error: BaseException | None) -> bool:
        return isinstance(error, RuntimeError) and str(error) == "Event loop is closed"

    told, ignored = sys.excepthook, sys.unraisablehook
    sys.excepthook = lambda kind, error, trace: is_echo(error) or told(kind, error, trace)
    sys.unraisablehook = lambda what: is_echo(what.exc_value) or ignored(what)


def reason(error: BaseException) -> str:
    """The root of the error, on one line: what Orbax wraps around it misleads."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def _is_not_chatter(record: logging.LogRecord) -> bool:
    """Hides what Orbax logs, a hundred lines a save, unless debugging with --verbosity=1."""
    shown = logging.getLogger("absl").isEnabledFor(logging.DEBUG)
    return shown or "/orbax/checkpoint/" not in record.pathname


logging.getLogger("absl").addFilter(_is_not_chatter)
