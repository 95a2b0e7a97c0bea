"""How long saving a checkpoint keeps the training loop waiting, against the size of the state.

  python benchmarks/checkpoints.py [--megabytes=10,100,400,1600] [--folder=DIR]

"Blocked" is what the loop waits for in `CheckpointStore.save`: arrays copied to the host, and of it
what their fingerprint takes. The rest is written in the background; "whole" is until the save is
complete, with nothing else to do. Takes two minutes and three times the largest size on the disk.
"""

import argparse
import tempfile
from collections.abc import Iterator, Sequence

import jax
from timing import describe_machine, listed, print_table, seconds, spread

from sra_jax.training.checkpoint import CheckpointStore
from sra_jax.training.fingerprint import fingerprint

LEAVES = 16
HEADER = ("MB", "blocked, ms", "of it fingerprint, ms", "whole, ms", "restore, ms")


def main() -> None:
    """Prints a line a size."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--megabytes", type=listed(int), default=[10, 100, 400, 1600])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", help="where to put the temporary directory")
    options = parser.parse_args()
    print(describe_machine() + "\n")
    print_table(HEADER, lines(options))


def lines(options: argparse.Namespace) -> Iterator[list[str]]:
    """One line for each size."""
    for megabytes in options.megabytes:
        columns = measure(make_state(megabytes), options.repeats, options.folder)
        yield [str(megabytes), *(f"{spread(times).scaled(1e3):,.0f}" for times in columns)]


def measure(
    state: dict[str, jax.Array], repeats: int, folder: str | None
) -> tuple[Sequence[float], ...]:
    """The table's columns for one state, in seconds."""
    abstract = {name: jax.ShapeDtypeStruct(a.shape, a.dtype) for name, a in state.items()}
    with (
        tempfile.TemporaryDirectory(dir=folder) as workdir,
        CheckpointStore(workdir, keep=1) as store,
    ):
        save(store, 0, state)  # starts what later saves use
        pairs = [save(store, 1 + i, state) for i in range(repeats)]
        restores = [
            seconds(lambda: jax.block_until_ready(store.restore({"state": abstract})))
            for _ in range(repeats)
        ]
    prints = [seconds(lambda: fingerprint({"state": state})) for _ in range(repeats)]
    blocked, whole = zip(*pairs, strict=True)
    return blocked, prints, whole, restores


def make_state(megabytes: int) -> dict[str, jax.Array]:
    """Random float32 arrays, of one size."""
    size = megabytes * 10**6 // 4 // LEAVES
    keys = jax.random.split(jax.random.key(0), LEAVES)
    return {f"leaf{i}": jax.random.normal(key, (size,)) for i, key in enumerate(keys)}


def save(store: CheckpointStore, step: int, state: dict[str, jax.Array]) -> tuple[float, float]:
    """Seconds until the loop may go on, and until the save is complete."""
    blocked = seconds(lambda: store.save(step, {"state": state}, {}))
    return blocked, blocked + seconds(store.wait)


if __name__ == "__main__":
    main()
