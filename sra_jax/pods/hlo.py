"""Counts the bytes that a compiled XLA program sends between devices, and to and from memory.

It reads the text of `jax.stages.Compiled.as_text()`. The body of a loop is in the text once but
runs many times, which XLA's own cost analysis ignores.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

# Bytes that a device sends for each byte of `Collective.size`, in a ring of n devices.
SENT = {
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "all-gather": lambda n: (n - 1) / n,
    "reduce-scatter": lambda n: (n - 1) / n,
    "all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1.0,
}
# Instructions that move no bytes themselves; the computations they call may.
STILL = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "iota", "partition-id"}
STILL |= {"while", "conditional", "call", "after-all", "optimization-barrier"}
SLICES = ("dynamic-slice", "slice", "gather")
START = '"AsyncCollectiveStart"'
ON_CHIP = "S(1)"  # the layout's mark of arrays in memory on the chip

_INSTRUCTION = re.compile(
    r"^\s+(?P<root>ROOT )?%?(?P<name>\S+) = (?P<type>.*?) (?P<op>[a-z][\w-]*)"
    r"\((?P<operands>[^()]*)\)(?P<attributes>.*)$"
)
_COMPUTATION = re.compile(r"^(?P<entry>ENTRY )?%?(?P<name>\S+) \(.*\{$")
_ARRAY = re.compile(r"(?P<dtype>[a-z]\w*)\[(?P<shape>[\d,]*)\](?P<layout>\{[^}]*\})?")


class Array(NamedTuple):
    """An array on one device."""

    dtype: str
    shape: tuple[int, ...]
    on_chip: bool = False  # it is never in the device's main memory

    @property
    def size(self) -> int:
        """Its bytes."""
        bits = re.search(r"\d+", self.dtype)
        return math.prod(self.shape) * (int(bits[0]) if bits else 8) // 8  # pred takes a byte

    @property
    def moved(self) -> int:
        """Bytes to or from the main memory if all of it is read or written."""
        return 0 if self.on_chip else self.size


@dataclass(frozen=True)
class Instruction:
    """One line of the text."""

    name: str
    op: str
    arrays: tuple[Array, ...]  # its results
    operands: tuple[str, ...]  # names of instructions
    literal: str  # the text in the parentheses of a parameter or constant
    attributes: str
    is_root: bool

    def called(self, key: str) -> list[str]:
        """Returns the names of the computations in attribute `key`."""
        found = re.search(rf"\b{key}=(\{{[^}}]*\}}|%?[\w.-]+)", self.attributes)
        return re.findall(r"[\w.-]+", found[1]) if found else []

    def attribute(self, pattern: str) -> str:
        """Returns the first group of `pattern` in the attributes, or ""."""
        found = re.search(pattern, self.attributes)
        return found[1] if found else ""


class Collective(NamedTuple):
    """A collective operation."""

    kind: str
    arrays: tuple[Array, ...]  # operands of one device
    group: int  # devices that take part together
    count: int  # executions per step
    source: str  # the JAX operation that it comes from

    @property
    def size(self) -> int:
        """Bytes of the full array of one execution, over all devices of a gather."""
        shards = self.group if self.kind == "all-gather" else 1
        return shards * sum(array.size for array in self.arrays)

    @property
    def sent(self) -> float:
        """Bytes that one device sends per step."""
        return self.count * self.size * SENT[self.kind](self.group)


class Program:
    """A compiled program, parsed from its text.

    Raises:
      ValueError: the text is not a compiled program.
    """

    def __init__(self, text: str):
        self.computations: dict[str, dict[str, Instruction]] = {}
        entry = None
        for line in text.splitlines():
            if match := _COMPUTATION.match(line):
                current = self.computations[match["name"]] = {}
                entry = match["name"] if match["entry"] else entry
            elif match := _INSTRUCTION.match(line):
                current[match["name"]] = _instruction(match)
        if entry is None:
            raise ValueError("no ENTRY computation: not the text of a compiled program")
        self._executed = list(self._walk(entry, 1))
        devices = re.search(r"num_partitions=(\d+)", text[: text.index("\n")])
        self._devices = int(devices[1]) if devices else 1

    def collectives(self) -> list[Collective]:
        """Returns the collectives of a step; one that spans several fusions is counted once."""
        return [
            self._collective(kind, name, inner, count)
            for outer, instruction, count in self._executed
            for name, inner in self._with_insides(outer, instruction)
            if (kind := inner.op.removesuffix("-start")) in SENT and not self._goes_on(name, inner)
        ]

    def memory_traffic(self) -> int:
        """Returns the bytes that one device reads from and writes to its memory per step.

        Every instruction reads all of its operands and writes all of its results, except for
        slices, updates in place, and arrays that stay on the chip.
        """
        return sum(
            count * self._traffic(self.computations[name], instruction)
            for name, instruction, count in self._executed
            if instruction.op not in STILL and not instruction.op.endswith("-start")
        )

    def _walk(self, name: str, count: int) -> Iterator[tuple[str, Instruction, int]]:
        """Yields (computation, instruction, executions per step); does not enter fusions."""
        for instruction in self.computations[name].values():
            yield name, instruction, count
            inside, times = [], count
            if instruction.op == "while":
                inside, times = instruction.called("body"), count * self._trips(instruction)
            elif instruction.op == "call":
                inside = instruction.called("to_apply")
            elif instruction.op == "conditional":
                for key in ("branch_computations", "true_computation", "false_computation"):
                    inside = inside + instruction.called(key)
            for computation in inside:
                yield from self._walk(computation, times)

    def _with_insides(self, name: str, instruction: Instruction):
        """Yields (computation, instruction) for it and all inside a fusion or async call."""
        yield name, instruction
        if instruction.op in ("fusion", "async-start"):
            for computation in instruction.called("calls"):
                for inner in self.computations[computation].values():
                    yield from self._with_insides(computation, inner)

    def _trips(self, loop: Instruction) -> int:
        """Returns how often a loop runs: XLA's own count if the text has it.

        Otherwise it is the largest constant of the condition, since JAX counts up from 0, or 1.
        """
        if known := loop.attribute(r'"known_trip_count":\{"n":"(\d+)"'):
            return int(known)
        (condition,) = loop.called("condition")
        numbers = [
            int(inner.literal)
            for outer in self.computations[condition].values()
            for _, inner in self._with_insides(condition, outer)
            if inner.op == "constant" and inner.literal.isdecimal()
        ]
        return max(numbers, default=1)

    def _goes_on(self, name: str, instruction: Instruction) -> bool:
        """Returns whether this is a later part of a collective that began in another fusion."""
        starts = (START in i.attributes for i in self.computations[name].values())
        return "chain_id=" in instruction.attributes and not any(starts)

    def _collective(self, kind: str, name: str, instruction: Instruction, count: int) -> Collective:
        computation = self.computations[name]
        if kind == "all-reduce" and _only_sliced(computation, instruction):
            kind = "reduce-scatter"
        return Collective(
            kind,
            tuple(a for operand in instruction.operands for a in computation[operand].arrays),
            group_size(instruction.attributes) or self._devices,
            count,
            instruction.attribute(r'op_name="([^"]*)"'),
        )

    def _traffic(self, computation: dict[str, Instruction], instruction: Instruction) -> int:
        """Returns the bytes that one execution reads from and writes to memory."""
        if instruction.op.endswith("-done"):  # of a copy or slice: its start names the source
            start = computation[instruction.operands[0]]
            sources = [a for operand in start.operands for a in computation[operand].arrays]
            size = sum(array.size for array in instruction.arrays)
            read = 0 if sources and sources[0].on_chip else size
            return read + sum(array.moved for array in instruction.arrays)
        fused = instruction.called("calls") if instruction.op == "fusion" else []
        inner = self.computations[fused[0]] if fused else computation
        read = 0
        for position, operand in enumerate(instruction.operands):
            arrays = computation[operand].arrays
            used = self._used(inner, position) if fused else _used_by(instruction, position, inner)
            whole = sum(array.moved for array in arrays)
            read += whole if used is None else min(used, whole)
        return read + self._written(inner, instruction, bool(fused))

    def _used(self, fused: dict[str, Instruction], position: int) -> int | None:
        """Returns the bytes that a fusion reads of an operand; None means all."""
        parameter = next(
            i.name for i in fused.values() if i.op == "parameter" and i.literal == str(position)
        )
        return self._used_of(fused, parameter)

    def _used_of(self, computation: dict[str, Instruction], name: str) -> int | None:
        """Returns the bytes that all users of `name` read of it; None means all."""
        total = 0
        for user in computation.values():
            for position, operand in enumerate(user.operands):
                if operand != name:
                    continue
                if user.op == "fusion":
                    used = self._used(self.computations[user.called("calls")[0]], position)
                elif user.op == "bitcast":
                    used = self._used_of(computation, user.name)
                else:
                    used = _used_by(user, position, computation)
                if used is None:
                    return None
                total += used
        return total

    def _written(self, inner: dict[str, Instruction], instruction: Instruction, fused: bool) -> int:
        """Returns the bytes that an instruction writes; `inner` holds the root of a fusion."""
        if instruction.op == "dynamic-update-slice":
            return sum(array.moved for array in inner[instruction.operands[1]].arrays)
        if not fused:
            return sum(array.moved for array in instruction.arrays)
        root = next(i for i in inner.values() if i.is_root)
        parts = [inner[name] for name in root.operands] if root.op == "tuple" else [root]
        if len(parts) != len(instruction.arrays):
            return sum(array.moved for array in instruction.arrays)
        written = 0
        for part, array in zip(parts, instruction.arrays, strict=True):
            while part.op == "bitcast":
                part = inner[part.operands[0]]
            if part.op == "dynamic-update-slice" and not array.on_chip:
                written += inner[part.operands[1]].arrays[0].size
            elif part.op != "parameter":
                written += array.moved
        return written


def group_size(attributes: str) -> int | None:
    """Returns how many devices take part together; None if the text does not say: all of them.

    XLA writes groups as {{0,1},{2,3}}, [2,2]<=[4] or mesh['a'=2,'b'=2] {'b'}.
    """
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        return found[1].count(",") + 1
    if found := re.search(r"replica_groups=\[\d+,(\d+)\]", attributes):
        return int(found[1])
    if found := re.search(
        r"replica_groups=mesh\[(.*?)\](?:, device_ids=\S+)? \{(.*?)\}", attributes
    ):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", found[1]))
        axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", found[2])
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
    return None


def _instruction(match: re.Match) -> Instruction:
    arrays = tuple(
        Array(
            found["dtype"],
            tuple(int(n) for n in found["shape"].split(",") if n),
            ON_CHIP in (found["layout"] or ""),
        )
        for found in _ARRAY.finditer(match["type"])
    )
    operands = tuple(re.findall(r"%([\w.-]+)", match["operands"]))
    return Instruction(
        match["name"],
        match["op"],
        arrays,
        operands,
        "" if operands else match["operands"],
        match["attributes"],
        bool(match["root"]),
    )


def _only_sliced(computation: dict[str, Instruction], reduced: Instruction) -> bool:
    """Returns whether each device keeps only its slice: a reduce-scatter written as two."""
    users = [i.op for i in computation.values() if reduced.name in i.operands]
    return bool(users) and set(users) == {"dynamic-slice"}


def _used_by(user: Instruction, position: int, computation: dict[str, Instruction]) -> int | None:
    """Returns the bytes that an instruction, not a fusion, reads of an operand; None means all."""
    if position == 0 and user.op in SLICES:
        return sum(array.size for array in user.arrays)
    if position == 0 and user.op == "dynamic-update-slice":
        return 0  # in place
    return None
