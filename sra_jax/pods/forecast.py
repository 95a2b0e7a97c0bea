"""Compiles a program for a TPU slice and predicts its memory, its traffic and its speed."""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from sra_jax.core.errors import RunError
from sra_jax.distributed.hardware import GIB, Chip, chip_of
from sra_jax.pods.hlo import Program

# The share of peak FLOP/s that matrix products of such models reach on TPUs: low and high.
EFFICIENCY = (0.35, 0.60)


class Task(NamedTuple):
    """A program to compile."""

    name: str
    lower: Callable[[], jax.stages.Lowered]
    held: Mapping[str, Any]  # trees of abstract arrays that are on the devices before it runs
    images: int
    flops: int  # operations per image, with rematerialisation
    useful: int  # the same without it


class OutOfMemory(NamedTuple):
    """A task that does not fit: bytes on a device."""

    needed: float
    available: float


class Roofline(NamedTuple):
    """The least seconds of one execution for each resource, if that one were used fully."""

    compute: float
    memory: float
    interconnect: float

    @property
    def bound(self) -> str:
        """The name of the largest term."""
        return max(self._fields, key=lambda name: getattr(self, name))

    @property
    def seconds(self) -> float:
        """Seconds if all three overlap and are used fully."""
        return max(self)

    @property
    def fast(self) -> float:
        """Seconds at the high efficiency if all three overlap."""
        return max(self.compute / EFFICIENCY[1], self.memory, self.interconnect)

    @property
    def slow(self) -> float:
        """Seconds at the low efficiency if nothing overlaps the interconnect."""
        return max(self.compute / EFFICIENCY[0], self.memory) + self.interconnect


class Fits(NamedTuple):
    """A task that fits: its costs on one device."""

    peak: int  # bytes
    arguments: int  # bytes of `peak`
    sent: Mapping[str, float]  # bytes by kind of collective
    roofline: Roofline


def compile_task(
    task: Task, mesh: Mesh, options: Mapping[str, Any] | None = None
) -> Fits | OutOfMemory:
    """Compiles `task` for the devices of `mesh`.

    Raises:
      RunError: the compiler fails for another reason than memory.
    """
    try:
        compiled = task.lower().compile(compiler_options=dict(options or {}))
    except jax.errors.JaxRuntimeError as error:
        if too_large := parse_out_of_memory(str(error)):
            return too_large
        reason = str(error).splitlines()[0]
        raise RunError(f"XLA cannot compile the {task.name}: {reason}") from error
    memory, program = compiled.memory_analysis(), Program(compiled.as_text())
    sent: dict[str, float] = {}
    for collective in program.collectives():
        sent[collective.kind] = sent.get(collective.kind, 0) + collective.sent
    chip = chip_of(mesh.devices.flat[0])
    flops = task.flops * task.images / mesh.size
    roofline = make_roofline(chip, flops, program.memory_traffic(), sum(sent.values()))
    return Fits(memory.peak_memory_in_bytes, memory.argument_size_in_bytes, sent, roofline)


def make_roofline(chip: Chip, flops: float, traffic: float, sent: float) -> Roofline:
    """Returns the roofline of operations, bytes to and from memory, and bytes sent by a device."""
    return Roofline(flops / chip.flops, traffic / chip.bandwidth, sent / chip.interconnect)


def parse_out_of_memory(text: str) -> OutOfMemory | None:
    """Reads XLA's error message; None if it is not about memory."""
    for pattern in (
        r"\(([\d.]+)([KMGT])\) exceeds available HBM \(([\d.]+)([KMGT])\)",
        r"Used ([\d.]+)([KMGT]) of ([\d.]+)([KMGT]) hbm",
    ):
        if found := re.search(pattern, text):
            units = {unit: 1024**power for power, unit in enumerate("KMGT", start=1)}
            return OutOfMemory(float(found[1]) * units[found[2]], float(found[3]) * units[found[4]])
    return None


def report_lines(task: Task, outcome: Fits | OutOfMemory, mesh: Mesh) -> list[str]:
    """Returns the result of `compile_task` as lines of text."""
    chip = chip_of(mesh.devices.flat[0])
    return [*_memory_lines(task, outcome, chip), *_cost_lines(task, outcome, mesh)]


def summary(outcome: Fits | OutOfMemory) -> str:
    """Returns the same as one line."""
    if isinstance(outcome, OutOfMemory):
        return f"does not fit: {_gib(outcome.needed)} of {_gib(outcome.available)} GiB"
    roofline = outcome.roofline
    return (
        f"{_gib(outcome.peak)} GiB, {1e3 * roofline.fast:,.0f} to {1e3 * roofline.slow:,.0f} ms, "
        f"bound by {roofline.bound}, {sum(outcome.sent.values()) / 1e9:,.2f} GB sent"
    )


def rank(outcome: Fits | OutOfMemory) -> tuple[bool, float]:
    """Returns a sort key: tasks that fit come first, then the fastest, or the smallest."""
    if isinstance(outcome, OutOfMemory):
        return True, outcome.needed
    return False, outcome.roofline.slow


def _memory_lines(task: Task, outcome: Fits | OutOfMemory, chip: Chip) -> Iterator[str]:
    held = {name: _device_bytes(tree) for name, tree in task.held.items()}
    parts = [f"{name} {_gib(size)}" for name, size in held.items()]
    if isinstance(outcome, OutOfMemory):
        rest = outcome.needed - sum(held.values())
        yield (
            f"fits     no: needs {_gib(outcome.needed)} of {_gib(outcome.available)} GiB a device; "
            "try --sweep"
        )
        yield f"memory   {', '.join(parts)}, activations and temporaries {_gib(rest)} GiB"
        return
    padding = outcome.arguments - sum(held.values())
    temporaries = outcome.peak - outcome.arguments
    yield f"fits     yes: {_gib(outcome.peak)} of {_gib(chip.memory)} GiB a device"
    yield (
        f"memory   {', '.join(parts)}, padding {_gib(padding)}, "
        f"activations and temporaries {_gib(temporaries)} GiB"
    )


def _cost_lines(task: Task, outcome: Fits | OutOfMemory, mesh: Mesh) -> Iterator[str]:
    again = (task.flops - task.useful) / task.flops
    yield (
        f"flops    {task.flops * task.images / 1e12:,.1f} TFLOP for {task.images} images, "
        f"{task.flops / 1e9:,.1f} GFLOP an image, {again:.0%} of it rematerialisation"
    )
    if isinstance(outcome, OutOfMemory):
        return
    kinds = ", ".join(f"{kind} {size / 1e9:,.3f}" for kind, size in outcome.sent.items())
    roofline = outcome.roofline
    total = sum(outcome.sent.values()) / 1e9
    yield f"network  {total:,.3f} GB sent by a device{': ' if kinds else ''}{kinds}"
    terms = ", ".join(f"{name} {1e3 * t:,.1f}" for name, t in roofline._asdict().items())
    yield (
        f"roofline {1e3 * roofline.seconds:,.1f} ms, bound by {roofline.bound} ({terms}); "
        f"{task.images / roofline.seconds:,.0f} images/s at most"
    )
    slow, fast = (task.images / seconds for seconds in (roofline.slow, roofline.fast))
    yield (
        f"estimate {slow:,.0f} to {fast:,.0f} images/s on {mesh.size} devices: from computing at "
        f"{EFFICIENCY[0]:.0%} of the peak and then communicating, to {EFFICIENCY[1]:.0%} at once"
    )


def _device_bytes(tree: Any) -> int:
    """Bytes of an abstract tree on one device, without padding."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def _gib(size: float) -> str:
    return f"{size / GIB:,.2f}"
