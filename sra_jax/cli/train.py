"""Trains a diffusion transformer from a config file, with Self-Representation Alignment or without.

Run the same command again and it goes on from the last checkpoint, after whatever ended it. Any
field of the config is a flag; sra_jax/config/recipes.py lists all, with their defaults.

  python -m sra_jax train --config=configs/digits.py --workdir=runs/digits
  python -m sra_jax train --config=configs/sit_sra.py:XL/2,recipe=cosine --workdir=gs://bucket/xl \\
      --config.data.path=/mnt/latents --config.mesh.fsdp=16
"""

from collections.abc import Sequence

from absl import flags

from sra_jax.cli import app


def define_flags() -> Sequence[str]:
    """Defines the flags; returns the names of those that must be given."""
    app.define_config_flag()
    flags.DEFINE_string("workdir", None, "Directory of the run: checkpoints, config, events.")
    app.define_process_flags()
    return "config", "workdir"


def main() -> int:
    """Trains as the flags say."""
    from sra_jax.jobs.train import train  # takes seconds: only once signals are handled

    app.join_processes(stop_together=True)
    return train(app.read_config(), flags.FLAGS.workdir)
