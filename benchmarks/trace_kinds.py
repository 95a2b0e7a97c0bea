"""Sorts the time of a traced training step by the kind of work that the device does.

The compiled program says what each instruction computes, and the trace says when each kernel ran
and for which instruction. `classify` reads the program, `read_events` the trace, and `tabulate`
joins the two. The scopes that JAX notes in `op_name` come from the names of Flax modules and from
`jax.named_scope` in sra_jax/models/layers.py and sra_jax/training/step.py.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax

from sra_jax.pods.hlo import Instruction, Program

PRODUCTS = "matrix products"
ATTENTION = "attention"
NORM = "layer norm and modulation"
GELU = "GELU"
UPDATE = "optimiser and EMA"
COPIES = "copies"
OTHER = "other"
IDLE = "idle"
KINDS = (PRODUCTS, ATTENTION, NORM, GELU, UPDATE, COPIES, OTHER)
LOOP = "loop"  # an instruction that only runs others, whose time is theirs
MEASURED = "measured steps"  # what the host calls the steps that count

# Operations that compute nothing: they move values, or change their layout or their dtype.
MOVES = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "bitcast-convert"}
MOVES |= {"copy", "copy-start", "copy-done", "transpose", "reshape", "broadcast", "convert", "pad"}
MOVES |= {"slice", "dynamic-slice", "dynamic-update-slice", "concatenate", "reverse", "iota"}
MOVES |= {"reduce-precision"}

# Operations that hold others, and the attribute that says which.
CALLS = {"fusion": "calls", "fusion-start": "calls", "async-start": "calls", "call": "to_apply"}

# A reduction of such a name adds up the parts of a product that XLA split.
PRODUCT_NAMES = r"/(dot_general|transpose)$"

# Kernels that the program does not know are sorted by their names; the first pattern counts.
NAMES = {
    ATTENTION: r"fmha|flash|sdpa|attention|softmax",
    PRODUCTS: r"gemm|cutlass|nvjet|xmma|sm\d\d_|cublas|matmul|splitk|dot",
    COPIES: r"memcpy|memset|copy|transpose|convert",
}

# Wrappers in op_name that say nothing about the part of the model.
_WRAPPERS = re.compile(
    r"^(while|body|cond|closed_call|eval_jaxpr|checkpoint|rematted_computation|.*_run_blocks"
    r"|(jit|jvp|transpose|vmap)\(.*\))$"
)


class Op(NamedTuple):
    """The kind of an instruction, and the part of the model that it belongs to."""

    kind: str
    source: str


class Event(NamedTuple):
    """A kernel on a stream of the GPU, or an instruction on a thread of the CPU.

    `op` is the instruction that it ran for, "" if the trace does not say. Times are nanoseconds.
    """

    line: str
    name: str
    op: str
    start: float
    end: float


class Entry(NamedTuple):
    """All events of one name, kind and source in one step: milliseconds and their number."""

    name: str
    kind: str
    source: str
    ms: float
    count: float


class Profile(NamedTuple):
    """One step: its span from the first kernel to the last in milliseconds, and the entries, the
    longest first. `unknown` milliseconds belong to kernels sorted by their names alone."""

    span: float
    entries: list[Entry]
    unknown: float

    def of(self, kind: str) -> tuple[float, float]:
        """Milliseconds and number of kernels of `kind`; idle time has no kernels."""
        if kind == IDLE:
            return self.span - sum(entry.ms for entry in self.entries), 0
        chosen = [entry for entry in self.entries if entry.kind == kind]
        return sum(entry.ms for entry in chosen), sum(entry.count for entry in chosen)


def classify(text: str) -> dict[str, Op]:
    """The instructions of a compiled program, `jax.stages.Compiled.as_text()`, by name.

    A fusion that holds a matrix product counts as one. One that only moves values is a copy.
    Another has the kind of most of the values that it computes; sums of the parts of a split
    product are values of that product.

    Raises:
      ValueError: the text is not that of a program.
    """
    computations = Program(text).computations
    found = {}
    for computation in computations.values():
        for name, instruction in computation.items():
            kind, op_name = _judge(computations, computation, instruction)
            found[name] = Op(kind, _source(op_name))
    return found


def read_events(file: Path, platform: str) -> list[Event]:
    """The events of a trace, an `.xplane.pb` file, since the host entered the annotation MEASURED.

    If none is later than the annotation, these are the second half of all: as many steps are traced
    before the measured ones.

    On a GPU these are the kernels and copies on all streams of the first device. On a CPU they are
    the instructions on all threads; a loop's event holds those of its body.

    Raises:
      ValueError: the trace holds no such event; the message says what it holds.
    """
    data = jax.profiler.ProfileData.from_file(str(file))
    prefixes = {"gpu": ("/device:GPU:", "Stream"), "cpu": ("/host:CPU", "")}
    plane_prefix, line_prefix = prefixes[platform]
    events, seen, since = [], [], float("inf")
    for plane in data.planes:
        # The other lines of a GPU are overviews: they show the same time again.
        chosen = plane.name.startswith(plane_prefix) and not events
        for line in plane.lines:
            seen.append(f"{plane.name}: {line.name}")
            if plane.name == "/host:CPU":
                starts = (event.start_ns for event in line.events if event.name == MEASURED)
                since = min(since, *starts, float("inf"))
            if chosen and line.name.startswith(line_prefix):
                events += _read_line(line, platform)
    if not events:
        raise ValueError(f"the trace has no events of a {platform}; it has {'; '.join(seen)}")
    events.sort(key=lambda event: event.start)
    measured = [event for event in events if event.start >= since]
    return measured or events[len(events) // 2 :]


def tabulate(events: Sequence[Event], ops: Mapping[str, Op], steps: int = 1) -> Profile:
    """One step of `steps` that were traced in a row, sorted by kind."""
    # XLA names a kernel after the instruction, in letters, digits and underscores.
    kernels = {re.sub(r"\W", "_", name): op for name, op in ops.items()}
    found = [_find(event, ops, kernels) for event in events]
    loops = {i for i, op in enumerate(found) if op is not None and op.kind == LOOP}
    times, counts, unknown = defaultdict(float), defaultdict(int), 0.0
    for i, time in enumerate(attribute(events, loops)):
        if i in loops:
            continue
        op = found[i]
        if op is None:
            op = Op(_kind_of_name(events[i].name), "unknown, by its name")
            unknown += time
        key = events[i].name, *op
        times[key] += time
        counts[key] += 1
    ran = [event for i, event in enumerate(events) if i not in loops]
    span = max(event.end for event in ran) - min(event.start for event in ran)
    to_ms = 1e-6 / steps
    entries = [Entry(*key, time * to_ms, counts[key] / steps) for key, time in times.items()]
    entries.sort(key=lambda entry: -entry.ms)
    return Profile(span * to_ms, entries, unknown * to_ms)


def attribute(events: Sequence[Event], loops: set[int] = frozenset()) -> list[float]:
    """The nanoseconds that belong to each event, so that no moment is counted twice.

    Of events that overlap on one line, the moment belongs to the one that started last: a loop's
    body is not counted again as the loop. Lines that are busy at once share the moment equally.
    Events whose index is in `loops` get nothing.
    """
    edges = []
    for i, event in enumerate(events):
        if event.end > event.start:  # ends come before starts, and of two starts the longer event's
            edges += [(event.start, 1, -event.end, i), (event.end, 0, 0, i)]
    times = [0.0] * len(events)
    running: dict[str, list[int]] = {}
    before = 0.0
    for moment, starts, _, i in sorted(edges):
        owners = [line[-1] for line in running.values() if line[-1] not in loops]
        for owner in owners:
            times[owner] += (moment - before) / len(owners)
        before, line = moment, events[i].line
        if starts:
            running.setdefault(line, []).append(i)
        else:
            running[line].remove(i)
            if not running[line]:
                del running[line]
    return times


def _read_line(line, platform: str) -> Iterator[Event]:
    for event in line.events:
        stats = dict(event.stats)
        op = str(stats.get("hlo_op", "")).rpartition("::")[2]
        # Allocations of memory stand among a GPU's kernels, and a CPU's threads do much else.
        allocates = stats.keys() & {"memalloc_details", "memfree_details"}
        if op if platform == "cpu" else not allocates:
            yield Event(line.name, event.name, op, event.start_ns, event.end_ns)


def _find(event: Event, ops: Mapping[str, Op], kernels: Mapping[str, Op]) -> Op | None:
    """The instruction of the event in the program; None if the program does not know it."""
    op = ops.get(event.op) or kernels.get(event.name)
    if re.match(r"memcpy|memset", event.name, re.IGNORECASE):
        return Op(COPIES, op.source if op else "")
    if op is not None and op.kind == LOOP and event.name != event.op:
        return Op(OTHER, op.source)  # a kernel that decides whether the loop ends
    return op


def _kind_of_name(name: str) -> str:
    matches = (kind for kind, names in NAMES.items() if re.search(names, name, re.IGNORECASE))
    return next(matches, OTHER)


def _judge(computations, computation, instruction: Instruction) -> tuple[str, str]:
    """The kind of an instruction and the op_name that decided it."""
    own = _op_name(instruction)
    if instruction.op in ("while", "conditional"):
        return LOOP, own
    leaves = list(_leaves(computations, computation, instruction))
    weights = defaultdict(float)
    deciding: dict[str, str] = {}
    moves = False
    for inside, leaf in leaves:
        op_name = _op_name(leaf) or own
        target = leaf.attribute(r'custom_call_target="([^"]*)"')
        if re.search(r"fmha|flash|attention", target, re.IGNORECASE):
            return ATTENTION, op_name
        if _is_product(leaf, target):
            op_name = op_name or _operand_name(computation, instruction)
            return _kind_of_product(op_name), op_name
        size = _size(inside, leaf)
        if leaf.op in MOVES:
            moves = moves or size > 1 or leaf is instruction
        elif size > 1:  # single numbers are mostly positions of slices
            sums_parts = leaf.op == "reduce" and re.search(PRODUCT_NAMES, op_name)
            kind = _kind_of_product(op_name) if sums_parts else _scope(op_name)
            weights[kind] += size
            deciding.setdefault(kind, op_name)
    if re.search(r"gemm|cutlass|__cudnn\$fusion", instruction.attribute(r"backend_config=(.*)")):
        return _kind_of_product(own), own
    if weights:
        kind = max(weights, key=weights.get)
        return kind, deciding[kind]
    return COPIES if moves else _scope(own), own


def _leaves(computations, computation, instruction: Instruction):
    """(computation, instruction) of all that a fusion, call or async operation holds, or of a
    single instruction."""
    key = CALLS.get(instruction.op)
    inner = [name for name in instruction.called(key) if name in computations] if key else []
    if not inner:
        yield computation, instruction
    for name in inner:
        for each in computations[name].values():
            if each.op != "parameter":
                yield from _leaves(computations, computations[name], each)


def _is_product(instruction: Instruction, target: str) -> bool:
    if instruction.op == "custom-call":
        return bool(re.search(r"cublas|gemm|matmul|dot", target, re.IGNORECASE))
    return instruction.op in ("dot", "scaled-dot", "convolution")


def _kind_of_product(op_name: str) -> str:
    """Scores and their sum of values are attention; the projections around it are not."""
    return ATTENTION if _scope(op_name) == ATTENTION else PRODUCTS


def _size(computation: Mapping[str, Instruction], instruction: Instruction) -> int:
    """Values in the largest result or operand."""
    operands = [computation[name] for name in instruction.operands if name in computation]
    arrays = [array for each in (instruction, *operands) for array in each.arrays]
    return max((math.prod(array.shape) for array in arrays), default=0)


def _op_name(instruction: Instruction) -> str:
    """The JAX operation that asked for it; XLA joins several by semicolons."""
    return instruction.attribute(r'op_name="([^"]*)"').partition(";")[0]


def _operand_name(computation: Mapping[str, Instruction], instruction: Instruction) -> str:
    """The first name among the operands: XLA:GPU drops that of some products when it rewrites them
    for cuBLAS."""
    operands = (computation[name] for name in instruction.operands if name in computation)
    return next(filter(None, map(_op_name, operands)), "")


def _scope(op_name: str) -> str:
    """The kind that the names of scopes and modules say."""
    names = set(re.findall(r"[\w.]+", op_name))
    if names & {"optimizer", "ema", "grad_norm"}:
        return UPDATE
    if names & {"layer_norm", "modulate"}:
        return NORM
    if "activation" in names:
        return GELU
    if "attention" in names:  # the bias of its projections is neither attention nor a product
        return OTHER if names & {"qkv", "proj"} else ATTENTION
    # The rest of a block: gates, residual sums, and what the vectors of the modulation need.
    if "block" in names and "mlp" not in names:
        return NORM
    return NORM if "final" in names and "linear" not in names else OTHER


def _source(op_name: str) -> str:
    """`op_name` in short: the last three names, and whether it is of the backward pass."""
    names = [part for part in op_name.split("/") if not _WRAPPERS.match(part)]
    passes = {"rematted_computation": " (recomputed)", "transpose(": " (backward)"}
    suffix = next((text for part, text in passes.items() if part in op_name), "")
    return "/".join(names[-3:]) + suffix
