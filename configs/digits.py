"""SiT + SRA on scikit-learn's 1,797 handwritten digits, 8x8 pixels: the system in two minutes.

    python -m sra_jax.train --config=configs/digits.py --workdir=runs/digits

Two CPU cores, 2 GB of memory. A run this short needs a higher learning rate and a faster EMA than
the paper's 1e-4 and 0.9999; all else about the method is the paper's.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "model": {
                "patch_size": 2,
                "width": 64,
                "depth": 4,
                "num_heads": 4,
                "dtype": "auto",
                "remat": "none",
                "attention": "xla",
                "scan_unroll": 1,
            },
            "process": {"name": "interpolant", "path": "linear", "weighting": "uniform"},
            "sra": {
                "weight": 0.2,
                "student_block": 1,
                "teacher_block": 3,
                "distance": "smooth_l1",
                "gap": "dynamic",
                "gap_max": 0.2,
                "head": True,
                "constant_epochs": 0,
                "decade_epochs": 0,
            },
            "optimizer": {
                "learning_rate": 2e-3,
                "b1": 0.9,
                "b2": 0.999,
                "eps": 1e-8,
                "weight_decay": 0.0,
                "clip_norm": 1.0,
            },
            "data": {
                "path": "embedded:digits",
                "latent_shape": (8, 8, 1),
                "num_classes": 10,
                "examples_per_epoch": 1797,
            },
            "train": {
                "steps": 4000,
                "batch_size": 64,
                "seed": 0,
                "label_dropout": 0.1,
                "ema_decay": 0.995,
                "microbatches": 1,
                "log_every": 200,
                "checkpoint_every": 500,
                "keep": 3,
                "keep_every": 0,
            },
            "mesh": {"data": -1, "fsdp": 1, "tensor": 1},
            "sampling": {
                "solver": "sde",
                "steps": 100,
                "guidance": 2.0,
                "guidance_interval": (0.0, 1.0),
            },
        }
    )
