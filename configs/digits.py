"""SiT + SRA, or DiT + SRA, on scikit-learn's 1,797 handwritten digits of 8x8 pixels.

    python -m sra_jax train --config=configs/digits.py --workdir=runs/digits
    python -m sra_jax train --config=configs/digits.py:dit --workdir=runs/digits_dit

Hardware: two CPU cores, 2 GB of memory. Duration: one to two minutes. Expect every sample to be of
the class asked for, and a loss that ends near 0.45 (SiT). A run this short needs a higher learning
rate and a faster EMA than the paper's 1e-4 and 0.9999; the method is the paper's.
"""

from ml_collections import ConfigDict

from sra_jax.config.recipes import base_config, parse_argument, set_method, set_process
from sra_jax.core.errors import expect_one_of


def get_config(argument: str = "sit") -> ConfigDict:
    kind, _ = parse_argument(argument, {})
    expect_one_of("process of the digits", kind, ("sit", "dit"))
    config = base_config()
    config.model.update(patch_size=2, width=64, depth=4, num_heads=4)
    set_method(config, "sra", student_block=1, teacher_block=3)
    config.optimizer.learning_rate = 2e-3
    config.data.update(
        path="embedded:digits", latent_shape=(8, 8, 1), num_classes=10, examples_per_epoch=1797
    )
    config.train.update(
        steps=3000, batch_size=64, ema_decay=0.995, log_every=250, checkpoint_every=500
    )
    config.evaluation.grid_every = 1000
    set_process(config, kind)  # a linear interpolant and its SDE, or DDPM
    config.sampling.update(steps="100", guidance=1.5)
    return config
