"""Draws images from a trained run, with its EMA weights unless asked otherwise.

What is not given (solver, steps, guidance) is as the run's config says.

  python -m sra_jax.sample --workdir=runs/digits --out=samples.npz --grid=samples.png --num=100
  python -m sra_jax.sample --workdir=runs/xl --out=samples.npz --num=64 --labels=207,360 \\
      --solver=heun --steps=50 --guidance=1.8 --guidance_interval=0,0.7

The .npz holds `arr_0`, uint8 [N, H, W, C], as the ADM evaluation suite reads it, `labels`, int32
[N], and request.json, what they were drawn by. Chunks are kept in OUT.parts until all are done: the
same command goes on after a kill. A finished OUT is drawn again by the same request of the same
checkpoint; any other is refused.
"""

from absl import flags

from sra_jax import command

_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run.")
_OUT = flags.DEFINE_string("out", None, "File to write, .npz.")
_GRID = flags.DEFINE_string("grid", None, "PNG of the first 100 images, ten a row.")
_NUM = flags.DEFINE_integer("num", 100, "How many images.")
_LABELS = flags.DEFINE_string("labels", "balanced", "random, balanced, or a list like 3,1,4.")
_SOLVER = flags.DEFINE_string("solver", None, "sde, euler, heun; for DiT ddpm, ddim.")
_STEPS = flags.DEFINE_string("steps", None, "Number of steps; for DiT also counts like 10,20.")
_GUIDANCE = flags.DEFINE_float("guidance", None, "Classifier-free guidance scale; 1 is none.")
_INTERVAL = flags.DEFINE_string("guidance_interval", None, "LOW,HIGH in time: 0 data, 1 noise.")
_CHANNELS = flags.DEFINE_integer("guidance_channels", None, "Leading channels guided; 0 is all.")
_SEED = flags.DEFINE_integer("seed", 0, "Image i is a function of the seed and i.")
_WEIGHTS = flags.DEFINE_string("weights", "ema", "ema or student.")
_STEP = flags.DEFINE_integer("step", None, "Checkpoint to use; the newest if not given.")
_CHUNK = flags.DEFINE_integer("chunk", 64, "Images that one device samples at a time.")
_VAE = flags.DEFINE_string("vae", None, "Folder of the VAE's weights, for latents of codec sd_vae.")
_PNG_DIR = flags.DEFINE_string("png_dir", None, "Directory to write each image to, as a PNG.")
command.define_process_flags()


def main() -> None:
    """Samples as the flags say."""
    from sra_jax.sampler import SampleRequest, sample  # takes seconds: once signals are heeded

    command.join_processes()
    sample(
        SampleRequest(
            workdir=_WORKDIR.value,
            out=_OUT.value,
            grid=_GRID.value,
            num=_NUM.value,
            labels=_LABELS.value,
            solver=_SOLVER.value,
            steps=_STEPS.value,
            guidance=_GUIDANCE.value,
            guidance_interval=_INTERVAL.value,
            guidance_channels=_CHANNELS.value,
            seed=_SEED.value,
            weights=_WEIGHTS.value,
            step=_STEP.value,
            chunk=_CHUNK.value,
            vae=_VAE.value,
            png_dir=_PNG_DIR.value,
        )
    )


if __name__ == "__main__":
    command.run(main, __doc__, required=("workdir", "out"))
