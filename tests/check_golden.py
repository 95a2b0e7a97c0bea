"""Compares every quantity of a golden file with ours.

  python -m tests.check_golden FILE.npz

Run it from the repository root. It needs jax, flax, optax and numpy only, and takes about 20
seconds on two cores. It prints a line for each quantity (`name relative_error tolerance`), then
`compared N quantities, worst RATIO of its tolerance (NAME)`. The exit code is 1 if a quantity is
beyond its tolerance, and 2 if the file is unreadable or of an unknown kind.

A quantity has the name of its key in the file. Of gradients and parameters only the worst tensor
has a line. Shapes and constants come from the file's `meta` and keys, so a file of other shapes and
seeds works unchanged. `KINDS` says which module compares which kind of file; tests and
`benchmarks/gpu_check.py` call the same functions.
"""

import argparse
import sys
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from sra_jax.core.errors import BAD_INPUT, FAILED, InputError

if __package__:  # `python -m tests.check_golden` has the root on the path, but not tests/
    sys.path.append(str(Path(__file__).parent))

from golden import Comparison, Golden
from golden_kinds import dit, layersync, sit

# A kind's module has KEYS, which together are in no file of another kind, and GROUPS: functions by
# name, in order, that yield the comparisons of one part of the file.
KINDS = {"sit": sit, "dit": dit, "layersync": layersync}


def load(file: Path) -> tuple[str, Golden]:
    """Reads a golden file.

    Returns:
      Its kind, and its arrays.

    Raises:
      InputError: the file is unreadable or of an unknown kind.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            keys = {name.removesuffix(".npy") for name in archive.namelist()}
        kind = next((name for name, module in KINDS.items() if keys >= module.KEYS), None)
        if kind is not None:
            return kind, Golden(kind, file)
    except (OSError, EOFError, TypeError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"{file} is unreadable: {reason}") from None
    raise InputError(f"{file} is of an unknown kind, expected one of {', '.join(KINDS)}")


def compare_all(kind: str, golden: Golden) -> Iterator[Comparison]:
    """Compares every quantity of a file, group by group."""
    for group in KINDS[kind].GROUPS.values():
        yield from group(golden)


def report(comparisons: Iterable[Comparison]) -> bool:
    """Prints a line for each comparison as soon as it is made, then the summary.

    Returns:
      Whether all are within their tolerances.
    """
    made = []
    for each in comparisons:
        print(f"{each.name} {each.error:.2e} {each.tolerance:.0e}", flush=True)
        made.append(each)
    worst = max(made, key=lambda each: each.ratio)
    print(
        f"compared {len(made)} quantities, worst {worst.ratio:.2f} of its tolerance ({worst.name})"
    )
    beyond = [each.name for each in made if not each.ok]
    if beyond:
        print(f"beyond tolerance: {', '.join(beyond)}", file=sys.stderr)
    return not beyond


def main(arguments: list[str] | None = None) -> int:
    """Compares the file of the command line.

    Returns:
      The exit code.
    """
    parser = argparse.ArgumentParser(prog="check_golden", description=__doc__.partition("\n")[0])
    parser.add_argument("file", type=Path, metavar="FILE.npz")
    file = parser.parse_args(arguments).file
    try:
        kind, golden = load(file)
        ok = report(compare_all(kind, golden))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyError as error:
        print(f"error: {file} has no {error}", file=sys.stderr)
        return BAD_INPUT
    if golden.unread:  # a result that no function knows must not pass for a compared one
        print(f"not compared: {', '.join(golden.unread)}", file=sys.stderr)
    return 0 if ok else FAILED


if __name__ == "__main__":
    sys.exit(main())
