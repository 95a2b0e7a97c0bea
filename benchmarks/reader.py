"""How fast the reader feeds a device: records a second, memory, and the time to resume.

  python benchmarks/reader.py [--folder=DIR]

Writes 20,000 records of 32x32x8 float16 into a temporary directory (of --folder, to measure its
disk), and reads them in batches of 256 on two cores, stacked and placed on the default device.
"Cold" is a pass after the kernel was told to forget the files, "warm" the median of five later
ones.
"""

import argparse
import itertools
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

from sra_jax.data.pipeline import batches, prefetch
from sra_jax.data.records import open_records, write_latents
from sra_jax.data.spec import LatentSpec

RECORDS, SHARDS, BATCH, CORES = 20_000, 4, 256, 2
FAR_STEP = 1_000_000
WARM_PASSES = 5


def main() -> None:
    """Writes in another process, whose memory does not count, then reads and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", help="where to put the temporary directory")
    parser.add_argument("--write", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write:
        return write(Path(options.write))
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = Path(folder) / "latents"
        subprocess.run([sys.executable, __file__, f"--write={path}"], check=True)
        report(path)
    return None


def write(path: Path) -> None:
    """A data set of random latents at `path`."""
    spec = LatentSpec("sd_vae", 0.18215, 0.0, (32, 32, 4), 256, 3, num_classes=1000)
    rng = np.random.default_rng(0)

    def shard() -> Iterator:
        for _ in range(RECORDS // SHARDS // 500):
            moments = rng.uniform(size=(500, *spec.moments_shape)).astype(np.float32)
            yield moments, rng.integers(0, spec.num_classes, 500)

    write_latents(path, spec, [shard() for _ in range(SHARDS)])


def report(path: Path) -> None:
    """Measures and prints."""
    load = os.getloadavg()[0]
    jax.device_put(np.zeros(1)).block_until_ready()  # starting the device is not the reader's time
    forget(path)
    began = time.perf_counter()
    source = open_records(path)
    stream = prefetch(batches(source, BATCH, 0, FAR_STEP), jax.device_put)
    jax.block_until_ready(next(stream))
    resumed = time.perf_counter() - began
    stream.close()

    forget(path)
    source = open_records(path)
    stream = prefetch(batches(source, BATCH, 0, 0), jax.device_put)
    cold = read_pass(stream)
    warm = [read_pass(stream) for _ in range(WARM_PASSES)]
    stream.close()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    device = jax.devices()[0]
    print(f"{RECORDS:,} records, batch {BATCH}, {CORES} cores, onto {device.device_kind}")
    print(f"load before: {load:.1f} on {os.cpu_count()} cores\n")
    print("| | measured | target |\n|---|---|---|")
    print(f"| records/s, cold | {cold:,.0f} | 6,000 |")
    print(f"| records/s, warm | {statistics.median(warm):,.0f} | 12,000 |")
    print(f"| resident memory at most, MiB | {memory:,.0f} | 400 |")
    print(f"| first batch at step {FAR_STEP:,}, opening included, s | {resumed:.2f} | 2 |")


def read_pass(stream: Iterator) -> float:
    """Records a second over the batches of one epoch."""
    count = RECORDS // BATCH
    began = time.perf_counter()
    for batch in itertools.islice(stream, count):
        jax.block_until_ready(batch)
    return count * BATCH / (time.perf_counter() - began)


def forget(path: Path) -> None:
    """Drops the files from the page cache."""
    for file in path.iterdir():
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


if __name__ == "__main__":
    main()
