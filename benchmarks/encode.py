"""Time of encoding outside the VAE (decoding, cropping, writing, importing), and disk space.

  python benchmarks/encode.py [--images=1000] [--folder=DIR]

Encodes JPEG files of 500x375 pixels, as large as ImageNet's, with a codec that does nothing: the
whole command, and each stage alone on one thread. A VAE that encodes fewer images a second than the
whole command does here, on as many cores, never waits.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from sra_jax.data.crop import center_crop, read_image
from sra_jax.data.images import open_labelled_images
from sra_jax.data.npy_import import NpyLatents
from sra_jax.data.records import write_shard
from sra_jax.jobs.encode import EncodeRequest, EncodingJob, ImageLatents, open_producer

REPEATS = 200  # of a stage alone


class NoCodec:
    """Latents of the shape of SD-VAE's, without computing any."""

    name = "none"
    scale, shift, downsampling = 1.0, 0.0, 8

    def encode(self, images: np.ndarray) -> np.ndarray:
        """Images `[B, S, S, 3]` -> moments `[B, S / 8, S / 8, 8]`."""
        count, side = images.shape[0], images.shape[1] // self.downsampling
        return np.ones((count, side, side, 8), np.float32)


def main() -> None:
    """Measures and prints two tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--folder", help="where to put the temporary directory")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        root = Path(folder)
        size = make_images(root / "images", options.images)
        make_latents(root / "vae-sd", options.images)
        print(
            f"{options.images:,} JPEG files of 500x375, {size / options.images / 1e3:.0f} kB each"
        )
        print(f"load before: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores\n")
        print_stages(root)
        print_runs(root, options.images)


def make_images(folder: Path, count: int) -> int:
    """Photograph-like files in ten classes: noise at every scale. Returns their bytes."""
    rng = np.random.default_rng(0)
    for i in range(count):
        path = folder / f"{i % 10}" / f"{i:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.zeros((375, 500, 3), np.float32)
        for scale in (4, 16, 64, 256):
            coarse = rng.uniform(-1, 1, (scale * 3 // 4, scale, 3)).astype(np.float32)
            image = [Image.fromarray(coarse[..., c]).resize((500, 375)) for c in range(3)]
            pixels += np.stack([np.asarray(channel) for channel in image], axis=-1) / scale**0.25
        pixels = np.clip(128 + 100 * pixels, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(path, quality=95)
    return sum(path.stat().st_size for path in folder.rglob("*.jpg"))


def make_latents(folder: Path, count: int) -> None:
    """Files as EDM2's dataset_tool.py writes them."""
    rng, labels = np.random.default_rng(0), []
    for i in range(count):
        name = f"{i // 1000:05d}/img-mean-std-{i:08d}.npy"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(folder / name, rng.uniform(size=(8, 32, 32)).astype(np.float32))
        labels.append([name, i % 10])
    (folder / "dataset.json").write_text(json.dumps({"labels": labels}))


def print_stages(root: Path) -> None:
    """Milliseconds of each stage for one image on one thread."""
    paths = sorted((root / "images").rglob("*.jpg"))
    image = read_image(paths[0])
    producer = NpyLatents(root / "vae-sd", "float16", skip_bad=False)
    moments, labels = next(producer.batches(range(REPEATS), []))

    def decode():
        for i in range(REPEATS):
            read_image(paths[i % len(paths)])

    def crop(side: int) -> Callable:
        return lambda: [center_crop(image, side) for _ in range(REPEATS)]

    print("| one image on one thread | ms |\n|---|---|")
    for name, stage, count in (
        ("decode", decode, REPEATS),
        ("crop to 256", crop(256), REPEATS),
        ("crop to 512", crop(512), REPEATS),
        (
            "write 32x32x8 float16",
            lambda: write_shard(root / "shard", producer.spec, [(moments, labels)]),
            len(moments),
        ),
    ):
        print(f"| {name} | {1e3 * seconds(stage) / count:.3f} |")
    print()


def print_runs(root: Path, count: int) -> None:
    """Rate and disk space of whole runs."""
    print("| whole run, no VAE | images/s | processor ms an image | GB a million images |")
    print("|---|---|---|---|")
    images, latents = str(root / "images"), f"npy:{root / 'vae-sd'}"
    for name, request in (
        ("256px", EncodeRequest(images, "", resolution=256)),
        ("256px, flips", EncodeRequest(images, "", resolution=256, flip=True)),
        ("256px, float32", EncodeRequest(images, "", resolution=256, dtype="float32")),
        ("512px", EncodeRequest(images, "", resolution=512)),
        ("import of .npy", EncodeRequest(latents, "")),
    ):
        out = root / name
        if request.source == images:
            producer = ImageLatents(open_labelled_images(images), NoCodec(), request)
        else:
            producer = open_producer(request)
        job = EncodingJob(str(out), producer, request.shard_bytes)
        busy = time.process_time()
        taken = seconds(lambda job=job: run(job))
        busy = time.process_time() - busy
        size = sum(path.stat().st_size for path in out.iterdir())
        print(
            f"| {name} | {count / taken:,.0f} | {1e3 * busy / count:.2f} "
            f"| {size / count / 1e3:,.1f} |"
        )


def run(job: EncodingJob) -> None:
    """What one process does from the first image to the finished set."""
    with job.shards.locked(0):
        job.write(job.begin(0, 1))
        job.shards.finish()


def seconds(function: Callable) -> float:
    """How long a call takes."""
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
