"""Settings of Orbax: what is kept, memory, multi-process waits, and its log and error messages."""

import contextlib
import dataclasses
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp


@dataclasses.dataclass(frozen=True)
class KeepPolicy:
    """Keeps the newest `keep` undamaged checkpoints, multiples of `keep_every`, and that of `best`.

    It is a preservation policy of Orbax. `damaged` is read at every save, so it may grow.
    """

    keep: int
    keep_every: int | None
    best: Callable[[], int | None]
    damaged: set[int]

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        """Returns which of `checkpoints` to keep; Orbax puts the one being saved last."""
        del context
        steps = [checkpoint.step for checkpoint in checkpoints]
        kept = {step for step in steps if step > steps[-1]}  # left by a run that went further
        kept.update([step for step in steps if step not in self.damaged][-self.keep :])
        kept.add(self.best())
        if self.keep_every:
            kept.update(step for step in steps if step % self.keep_every == 0)
        return [step in kept for step in steps]


@contextlib.contextmanager
def saving_leanly(trees: Mapping[str, Any]) -> Iterator[None]:
    """Limits the memory of a save to the largest leaf of `trees`, and turns compression off.

    Float32 weights hardly compress. Wait for the save before leaving the context.
    """
    largest = max(leaf.nbytes for leaf in jax.tree.leaves(dict(trees)))
    with ocp.Context(  # the limit must be above the largest leaf
        memory_options=ocp.options.MemoryOptions(write_concurrent_bytes=largest + 2**20),
        array_options=ocp.options.ArrayOptions(
            saving=ocp.options.ArrayOptions.Saving(use_compression=False)
        ),
    ):
        yield


def saving_parts() -> ocp.Context:
    """Lets several devices that hold an array each write a part of it, if parts are 1 MiB or more.

    Cutting an array compiles a program for each shape and device, which the first save waits for.
    """
    return ocp.Context(
        array_options=ocp.options.ArrayOptions(
            saving=ocp.options.ArrayOptions.Saving(min_slice_bytes_for_replica_parallel=2**20)
        )
    )


def reading_alone() -> ocp.Context:
    """Lets a process read without waiting for the others, because one of them may have failed."""
    process = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=process, active_processes={process}, barrier_sync_key_prefix=str(process)
    )
    return ocp.Context(multiprocessing_options=alone)


def reason(error: BaseException) -> str:
    """Returns the root cause of an error of Orbax on one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def _is_wanted(record: logging.LogRecord) -> bool:
    """Hides what Orbax logs, a hundred lines a save, unless absl's verbosity is 1 (debug)."""
    shown = logging.getLogger("absl").isEnabledFor(logging.DEBUG)
    return shown or "/orbax/checkpoint/" not in record.pathname


logging.getLogger("absl").addFilter(_is_wanted)
# Orbax leaves such a coroutine behind when it cannot read a checkpoint, which is logged anyway.
warnings.filterwarnings("ignore", r"coroutine 'PyTreeHandler\._background_load'", RuntimeWarning)
