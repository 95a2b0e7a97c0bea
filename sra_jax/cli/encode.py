"""Encodes images into a data set of latents to train on, or imports latents encoded elsewhere.

It may be killed at any moment: the same command resumes, keeps finished shards, and ends with the
same data set. Any number of processes may share the work, on a disk that all of them see.

  python -m sra_jax encode --source=ILSVRC/train --vae=sd-vae-ft-ema --out=data/imagenet256
  python -m sra_jax encode --source=tfds:imagenet2012 --vae=sd-vae-ft-ema --resolution=512 \\
      --out=data/imagenet512 --flip --skip_bad
  python -m sra_jax encode --source=samples.npz --codec=pixels --resolution=32 --out=data/samples
  python -m sra_jax encode --source=npy:REPA/vae-sd --out=data/imagenet256

A source is tfds:NAME (prepared as ArrayRecord), a folder with a directory for each class (or with
images only: one class), an .npz with arr_0 or images, uint8 [N, H, W, C], and perhaps labels [N],
embedded:digits or embedded:shapes, or npy:FOLDER, which the scripts of EDM2, REPA and SRA write
(those of EDM2 encode pixels in [0, 1], not [-1, 1]; so a model trained on them generates [0, 1]).
"""

from collections.abc import Sequence

from sra_jax.cli import app
from sra_jax.jobs.requests import EncodeRequest


def define_flags() -> Sequence[str]:
    """Defines the flags; returns the names of those that must be given."""
    app.define_process_flags()
    return app.define_request_flags(EncodeRequest)


def main() -> None:
    """Encodes as the flags say."""
    from sra_jax.jobs.encode import encode  # takes seconds: only once signals are handled

    app.join_processes()
    encode(app.read_request(EncodeRequest))
