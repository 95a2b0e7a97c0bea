"""Asks how much each block of a run's model knows, at each level of noise.

  python -m sra_jax.probe --workdir=runs/digits
  python -m sra_jax.probe --workdir=runs/xl --blocks=8,20 --times=0.1,0.3,0.5 --num=0 \\
      --test_data=data/imagenet_val --protocol=paper
  python -m sra_jax.probe --workdir=runs/xl --blocks=8,20 --every=100000

Fits linear classifiers to the features of --data, the run's own unless given, and tries them on
held-out images. Writes probe.json (accuracy, k-NN accuracy, effective rank, norms), heatmap.png,
depth.png and pca.png, with several checkpoints also checkpoints.png, into WORKDIR/probe, where they
replace those of an earlier probe, of whatever blocks and times: --out keeps both. Features are kept
there and used again; WORKDIR/probe/features may be deleted at any time.
"""

from absl import flags

from sra_jax import command

_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run.")
_BLOCKS = flags.DEFINE_string("blocks", "all", "all, or a list like 1,8,20, counted from 1.")
_TIMES = flags.DEFINE_string("times", "0.1,0.3,0.5,0.7", "From 0 (data) to 1 (noise).")
_WEIGHTS = flags.DEFINE_string("weights", "ema", "ema or student.")
_STEPS = flags.DEFINE_string("steps", None, "Checkpoints, like 1000,2000; the newest if not given.")
_EVERY = flags.DEFINE_integer("every", None, "All checkpoints whose step is a multiple of this.")
_DATA = flags.DEFINE_string(
    "data", None, "Latents to learn from, embedded:digits or embedded:shapes; else the run's own."
)
_TEST_DATA = flags.DEFINE_string(
    "test_data", None, "The same, to be tried on; else a fifth of --data is held out."
)
_NUM = flags.DEFINE_integer("num", 50_000, "Images of each set, drawn by the seed; 0 is all.")
_PROTOCOL = flags.DEFINE_string(
    "protocol", "auto", "paper (80 epochs of Adam), quick (L-BFGS), or auto: by the data's size."
)
_IMAGES = flags.DEFINE_string("images", None, "Numbers of the images in pca.png, like 0,7.")
_SEED = flags.DEFINE_integer("seed", 0, "Of the noise, of what is held out, and of the batches.")
_OUT = flags.DEFINE_string("out", None, "Directory to write to; WORKDIR/probe if not given.")


def main() -> None:
    """Probes as the flags say."""
    from sra_jax.prober import ProbeRequest, probe  # takes seconds: once signals are heeded

    probe(
        ProbeRequest(
            workdir=_WORKDIR.value,
            blocks=_BLOCKS.value,
            times=_TIMES.value,
            weights=_WEIGHTS.value,
            steps=_STEPS.value,
            every=_EVERY.value,
            data=_DATA.value,
            test_data=_TEST_DATA.value,
            num=_NUM.value,
            protocol=_PROTOCOL.value,
            images=_IMAGES.value,
            seed=_SEED.value,
            out=_OUT.value,
        )
    )


if __name__ == "__main__":
    command.run(main, __doc__, required=("workdir",))
