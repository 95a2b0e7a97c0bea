"""Checks the results of an accelerator: golden numbers, and attention kernels.

  python benchmarks/gpu_check.py [--seconds=30]
  python benchmarks/gpu_check.py --tiny      # the cheapest checks, to try the script on a CPU

Table "golden" has every quantity of tests/data/sit.npz and dit.npz (see tests/check_golden.py),
computed in float32 with matrix products at full precision. The tolerance is ten times the one on a
CPU. The predictions and features of the bfloat16 forward follow, within 2e-2. Table "attention" has
cuDNN's and XLA's attention in bfloat16, output and gradients, against XLA's in float32, within
2e-2. All errors are norms of the difference over norms.

With --seconds, no check begins in the last five of them, and one line names those left out. If a
quantity is beyond its tolerance, the last line names it and the exit code is 1. If cuDNN refuses,
the row holds its reason, and that is no failure. Takes about half a minute on a GPU (an estimate)
and a minute on two CPU cores. Needs jax, flax, optax and numpy only.
"""

import argparse
import dataclasses
import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from records import Clock, Record, Table, add_flags, start
from timing import describe_machine

ROOT = Path(__file__).resolve().parents[1]
sys.path += [str(ROOT), str(ROOT / "tests")]  # at the end: benchmarks/ has modules of the same name

from check_golden import KINDS  # noqa: E402
from golden import BFLOAT16, Comparison, Golden, relative_error  # noqa: E402

FACTOR = 10  # between a tolerance here and on a CPU: other kernels round in another order
LITTLE = 5  # seconds; no check begins if less time is left

KINDS_CHECKED = ("sit", "dit")
GOLDEN_COLUMNS = ("file", "quantity", "error", "tolerance", "ok")
LAST_GROUPS = ("losses", "gradients", "samples")

ATTENTION_COLUMNS = ("shape", "quantity", "cudnn", "xla", "tolerance", "ok")
SHAPES = ((4, 256, 16, 72), (4, 256, 12, 64), (4, 1024, 16, 72))  # batch, tokens, heads, width
TINY_SHAPES = ((4, 16, 16, 72), (4, 16, 12, 64))
ATTENDED = ("output", "gradient of q", "gradient of k", "gradient of v")
TOLERANCE = 2e-2


class Checks:
    """The findings so far: quantities beyond their tolerance, and checks left out."""

    def __init__(self, record: Record, clock: Clock):
        self.record, self._clock = record, clock
        self.beyond: list[str] = []
        self.left_out: list[str] = []

    def may_begin(self, check: str) -> bool:
        """True if there is time for a check; otherwise it counts as left out."""
        if self._clock.left >= LITTLE:
            return True
        self.left_out.append(check)
        return False


def main(arguments: list[str] | None = None) -> str | None:
    """Runs every check that there is time for.

    Returns:
      One line on what is beyond its tolerance; None if nothing is.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_flags(parser)
    options = parser.parse_args(arguments)
    record, clock = start(options)
    machine = describe_machine()
    record.note(machine=machine)
    print(machine, flush=True)

    checks = Checks(record, clock)
    with jax.default_matmul_precision("highest"):
        check_golden(checks, ("forward",))
        check_golden(checks, ("forward",), dtype="bfloat16")
    check_attention(checks, TINY_SHAPES if options.tiny else SHAPES)
    with jax.default_matmul_precision("highest"):  # last, as samplers take longest to compile
        check_golden(checks, LAST_GROUPS[:1] if options.tiny else LAST_GROUPS)

    if checks.left_out:
        record.note(left_out=checks.left_out)
        print(f"\nleft out, as the time was up: {', '.join(checks.left_out)}", flush=True)
    if checks.beyond:
        return f"error: beyond tolerance: {', '.join(checks.beyond)}"
    return None


def check_golden(checks: Checks, groups: Iterable[str], dtype: str = "float32") -> None:
    """Adds a row for each quantity of some groups of both golden files, computed in `dtype`."""
    table = checks.record.table("golden", GOLDEN_COLUMNS)
    goldens = {kind: Golden(kind) for kind in KINDS_CHECKED}
    for golden in goldens.values():
        golden.config = dataclasses.replace(golden.config, dtype=dtype)
    for group in groups:
        for kind, golden in goldens.items():
            compare_group(checks, table, kind, golden, group)


def compare_group(checks: Checks, table: Table, kind: str, golden: Golden, group: str) -> None:
    """Adds the rows of one group, until there is no time for another one."""
    dtype = golden.config.dtype
    suffix = "" if dtype == "float32" else f" in {dtype}"
    comparisons = KINDS[kind].GROUPS[group](golden)
    while checks.may_begin(f"{group} of {kind}{suffix}"):
        try:
            each = next(comparisons, None)
        except jax.errors.JaxRuntimeError as error:  # the next group may still work
            each = Comparison(f"{group} failed: {first_line(error)}", float("nan"), 0.0)
        if each is None:
            return
        tolerance = FACTOR * each.tolerance if dtype == "float32" else BFLOAT16
        quantity, ok = each.name + suffix, each.error <= tolerance
        row = {"error": each.error, "tolerance": tolerance, "ok": ok}
        table.add(file=f"{kind}.npz", quantity=quantity, **row)
        if not ok:
            checks.beyond.append(f"{quantity} of {kind}.npz")


def check_attention(checks: Checks, shapes: Iterable[tuple[int, int, int, int]]) -> None:
    """Adds the rows of every shape of q, k and v: [batch, tokens, heads, width]."""
    table = checks.record.table("attention", ATTENTION_COLUMNS)
    for shape in shapes:
        name = " x ".join(map(str, shape))
        if not checks.may_begin(f"attention of {name}"):
            continue
        inputs = random_inputs(shape)
        with jax.default_matmul_precision("highest"):
            exact = attend(*(a.astype(jnp.float32) for a in inputs), implementation="xla")
        xla = errors(attend(*inputs, implementation="xla"), exact)
        cudnn = errors_of_cudnn(inputs, exact)
        for quantity in ATTENDED:
            found = {"cudnn": cudnn[quantity], "xla": xla[quantity]}
            numbers = {who: value for who, value in found.items() if isinstance(value, float)}
            beyond = [who for who, error in numbers.items() if not error <= TOLERANCE]
            found |= {"tolerance": TOLERANCE, "ok": not beyond}
            table.add(shape=name, quantity=quantity, **found)
            checks.beyond += [f"{quantity} of {who}'s attention of {name}" for who in beyond]


def random_inputs(shape: tuple[int, ...]) -> list[jax.Array]:
    """q, k, v and the weights of the output in the loss, each of `shape` and in bfloat16."""
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.standard_normal(shape, np.float32), jnp.bfloat16) for _ in range(4)]


@partial(jax.jit, static_argnames="implementation")
def attend(q, k, v, weights, implementation: str) -> dict[str, jax.Array]:
    """The output of attention, and the gradient of sum(output * weights) in q, k and v."""

    def loss(q, k, v):
        out = jax.nn.dot_product_attention(q, k, v, implementation=implementation)
        return jnp.sum((out * weights).astype(jnp.float32)), out

    gradients, out = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(q, k, v)
    return dict(zip(ATTENDED, (out, *gradients), strict=True))


def errors(actual: dict[str, jax.Array], exact: dict[str, jax.Array]) -> dict[str, float]:
    return {name: float(relative_error(actual[name], exact[name])) for name in exact}


def errors_of_cudnn(inputs: list[jax.Array], exact: dict) -> dict[str, float | str]:
    """The errors of cuDNN's attention; if it refuses, why, for every quantity."""
    if jax.default_backend() == "cpu":
        return dict.fromkeys(exact, "no cuDNN on cpu")
    try:
        return errors(attend(*inputs, implementation="cudnn"), exact)
    except (RuntimeError, ValueError) as error:
        return dict.fromkeys(exact, first_line(error))


def first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:300]


if __name__ == "__main__":
    sys.exit(main())
