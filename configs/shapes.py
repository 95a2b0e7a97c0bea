"""SiT + SRA, or DiT + SRA, on 20,000 drawn shapes of 32x32 pixels in 16 classes.

    python -m sra_jax train --config=configs/shapes.py --workdir=runs/shapes
    python -m sra_jax train --config=configs/shapes.py:dit --workdir=runs/shapes_dit

A class is a shape (disc, square, triangle, cross) with a texture (plain, stripes, checks, dots);
colours, size, place, turn and background vary freely. Hard enough to tell methods apart, which the
digits are not: benchmarks/learning.py does.

Hardware: two CPU cores, 2 GB of memory; the set takes 250 MB of the workdir. Duration: a step takes
about 0.15 s of one core. Learning rate and EMA are for runs this short, as in configs/digits.py;
the method is the paper's. Patches of 8 would be four times cheaper, but the prediction holds all
noise of a patch, and 192 values do not pass through a trunk of 64.
"""

from ml_collections import ConfigDict

from sra_jax.config.recipes import base_config, parse_argument, set_method, set_process
from sra_jax.core.errors import expect_one_of


def get_config(argument: str = "sit") -> ConfigDict:
    kind, _ = parse_argument(argument, {})
    expect_one_of("process of the shapes", kind, ("sit", "dit"))
    config = base_config()
    config.model.update(patch_size=4, width=64, depth=6, num_heads=4)
    set_method(config, "sra", student_block=2, teacher_block=4)
    config.optimizer.learning_rate = 1e-3
    config.data.update(
        path="embedded:shapes", latent_shape=(32, 32, 3), num_classes=16, examples_per_epoch=20_000
    )
    config.train.update(
        steps=6000, batch_size=32, ema_decay=0.995, log_every=250, checkpoint_every=1000
    )
    set_process(config, kind)  # a linear interpolant and its SDE, or DDPM
    config.sampling.update(steps="100", guidance=1.5)
    return config
