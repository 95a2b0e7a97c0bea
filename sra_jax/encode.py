"""Encodes images into a data set of latents to train on; or imports latents encoded elsewhere.

Kill it at any moment and run the same command: finished shards are kept, and the set ends as it
would have without. Any number of processes may share the work, on a disk that all of them see.

  python -m sra_jax.encode --source=ILSVRC/train --vae=sd-vae-ft-ema --out=data/imagenet256
  python -m sra_jax.encode --source=tfds:imagenet2012 --vae=sd-vae-ft-ema --resolution=512 \\
      --out=data/imagenet512 --flip --skip_bad
  python -m sra_jax.encode --source=samples.npz --codec=pixels --resolution=32 --out=data/samples
  python -m sra_jax.encode --source=npy:REPA/vae-sd --out=data/imagenet256

A source is tfds:NAME (prepared as ArrayRecord), a folder with a directory for each class (or with
images only: one class), an .npz with arr_0 or images, uint8 [N, H, W, C], and perhaps labels [N],
embedded:digits or embedded:shapes, or npy:FOLDER, what the scripts of EDM2, REPA and SRA write
(those of EDM2 encode pixels in [0, 1], not [-1, 1], and so will be what is trained on them).
"""

from absl import flags

from sra_jax import command

_SOURCE = flags.DEFINE_string("source", None, "Where the images, or latents, come from; see above.")
_OUT = flags.DEFINE_string("out", None, "Directory of the data set to write.")
_CODEC = flags.DEFINE_string("codec", None, "sd_vae (the default) or pixels.")
_VAE = flags.DEFINE_string("vae", None, "Folder of the VAE's weights, for sd_vae.")
_RESOLUTION = flags.DEFINE_integer(
    "resolution",
    None,
    "Side of the crops, a multiple of the codec's downsampling (8 for sd_vae, 1 for pixels) up to "
    "8192; 256 if not given.",
)
_FLIP = flags.DEFINE_bool("flip", False, "Store each image mirrored too, as a further record.")
_SKIP_BAD = flags.DEFINE_bool("skip_bad", False, "Leave bad images out, and list them.")
_DTYPE = flags.DEFINE_string("dtype", "float16", "Of the stored latents: float16 or float32.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Of TFDS, for tfds:NAME.")
command.define_process_flags()


def main() -> None:
    """Encodes as the flags say."""
    from sra_jax.encoder import EncodeRequest, encode  # takes seconds: once signals are heeded

    command.join_processes()
    encode(
        EncodeRequest(
            source=_SOURCE.value,
            out=_OUT.value,
            codec=_CODEC.value,
            vae=_VAE.value,
            resolution=_RESOLUTION.value,
            flip=_FLIP.value,
            skip_bad=_SKIP_BAD.value,
            dtype=_DTYPE.value,
            data_dir=_DATA_DIR.value,
        )
    )


if __name__ == "__main__":
    command.run(main, __doc__, required=("source", "out"))
