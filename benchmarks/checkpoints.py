"""How long saving a checkpoint keeps the training loop waiting, against the size of the state.

  python benchmarks/checkpoints.py [--megabytes=10,100,400,1600] [--devices=8] [--folder=DIR]

"Blocked" is what the loop waits for in `CheckpointStore.save`: arrays copied to the host, and of it
what their fingerprint takes. The rest is written in the background; "whole" is until the save is
complete, with nothing else to do. "First" is what the loop waits for the first save of a process,
which compiles what it needs. With `--devices` that many virtual CPU devices each hold the whole
state, as in data parallelism. Takes two minutes and three times the largest size on the disk.
"""

import argparse
import tempfile
from collections.abc import Iterator, Sequence

import jax
from timing import describe_machine, listed, print_table, seconds, spread

from sra_jax.checkpoints.fingerprint import fingerprint
from sra_jax.checkpoints.store import CheckpointStore

LEAVES = 16  # all of different sizes
HEADER = ("MB", "first, ms", "blocked, ms", "of it fingerprint, ms", "whole, ms", "restore, ms")


def main() -> None:
    """Prints a line a size."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--megabytes", type=listed(int), default=[10, 100, 400, 1600])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--devices", type=int, help="virtual CPU devices that each hold all of it")
    parser.add_argument("--folder", help="where to put the temporary directory")
    options = parser.parse_args()
    if options.devices:
        jax.config.update("jax_num_cpu_devices", options.devices)
    print(describe_machine() + "\n")
    print_table(HEADER, lines(options))


def lines(options: argparse.Namespace) -> Iterator[list[str]]:
    """One line for each size."""
    for megabytes in options.megabytes:
        columns = measure(make_state(megabytes), options.repeats, options.folder)
        first, *others = columns
        spreads = (f"{spread(times).scaled(1e3):,.0f}" for times in others)
        yield [str(megabytes), f"{first * 1e3:,.0f}", *spreads]


def measure(
    state: dict[str, jax.Array], repeats: int, folder: str | None
) -> tuple[float, *tuple[Sequence[float], ...]]:
    """The table's columns for one state, in seconds."""
    abstract = jax.tree.map(
        lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding), state
    )
    with (
        tempfile.TemporaryDirectory(dir=folder) as workdir,
        CheckpointStore(workdir, keep=1) as store,
    ):
        first, _ = save(store, 0, state)
        pairs = [save(store, 1 + i, state) for i in range(repeats)]
        restores = [
            seconds(lambda: jax.block_until_ready(store.restore({"state": abstract})))
            for _ in range(repeats)
        ]
    prints = [seconds(lambda: fingerprint({"state": state})) for _ in range(repeats)]
    blocked, whole = zip(*pairs, strict=True)
    return first, blocked, prints, whole, restores


def make_state(megabytes: int) -> dict[str, jax.Array]:
    """Random float32 arrays, whole on every device."""
    unit = megabytes * 10**6 // 4 // sum(range(1, LEAVES + 1)) // 8 * 8
    whole = jax.NamedSharding(jax.make_mesh((jax.device_count(),), ("data",)), jax.P())
    keys = jax.random.split(jax.random.key(0), LEAVES)
    return {
        f"leaf{i}": jax.device_put(jax.random.normal(key, (unit * (1 + i),)), whole)
        for i, key in enumerate(keys)
    }


def save(store: CheckpointStore, step: int, state: dict[str, jax.Array]) -> tuple[float, float]:
    """Seconds until the loop may go on, and until the save is complete."""
    blocked = seconds(lambda: store.save(step, {"state": state}, {}))
    return blocked, blocked + seconds(store.wait)


if __name__ == "__main__":
    main()
