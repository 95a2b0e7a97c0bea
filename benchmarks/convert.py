"""How long a checkpoint of SiT-XL/2 takes to convert, and how much memory.

  python benchmarks/convert.py [--ending=.pt] [--folder=DIR]

Writes random weights of the student and the EMA, with a projection head and without optimiser
moments, as the SRA authors' training script does (5.4 GB); converts them with the command, in a
process of its own; and exports the EMA again. DIR needs 15 GB.
"""

import argparse
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from published_models import transformer
from safetensors.numpy import save_file

from sra_jax.torch_weights.layout import torch_shapes


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--ending", default=".pt", choices=(".pt", ".safetensors"))
    parser.add_argument("--folder", help="where to put the temporary directory")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        root = Path(folder)
        source = root / f"SiT-XL-2{options.ending}"
        # In a process of its own: what a parent once held counts as its children's peak.
        writer = multiprocessing.get_context("spawn").Process(target=write_random, args=(source,))
        writer.start(), writer.join()
        load, cores = os.getloadavg()[0], os.cpu_count()
        print(f"{source.stat().st_size / 1e9:.2f} GB; load {load:.1f} on {cores} cores\n")
        print("| | seconds | of a processor | peak resident GB |\n|---|---|---|---|")
        exported = root / f"exported{options.ending}"
        for what, start, end in (
            ("file to workdir", source, root / "run"),
            ("workdir to file", root / "run", exported),
        ):
            seconds, busy, peak = convert(start, end)
            print(f"| {what} | {seconds:.1f} | {busy:.1f} | {peak:.2f} |", flush=True)


def write_random(path: Path) -> None:
    """A file of random weights of SiT-XL/2 at 256 pixels."""
    config = transformer("XL/2", "sit")
    rng = np.random.default_rng(0)

    def draw():
        shapes = torch_shapes(config, ("sra",)).items()
        tree = {name: 0.02 * rng.standard_normal(shape, np.float32) for name, shape in shapes}
        return tree | {"pos_embed": config.layout.position_table(config.width)[None]}

    if path.suffix == ".safetensors":
        save_file(draw(), path)
        return
    trees = {
        name: {key: torch.from_numpy(array) for key, array in draw().items()}
        for name in ("model", "ema")
    }
    torch.save(trees | {"args": argparse.Namespace(model="SiT-XL/2"), "steps": 400_000}, path)


def convert(source: Path, out: Path) -> tuple[float, float, float]:
    """Runs the command; its seconds, those of a processor, and its peak of resident GB."""
    command = [sys.executable, "-m", "sra_jax", "convert", f"--source={source}", f"--out={out}"]
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{' '.join(command)} failed")
    seconds = time.perf_counter() - began
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / 1e9


if __name__ == "__main__":
    main()
