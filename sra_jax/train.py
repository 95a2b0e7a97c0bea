"""Trains a diffusion transformer from a config file, with Self-Representation Alignment or without.

Run the same command again and it goes on from the last checkpoint, after whatever ended it. Any
field of the config is a flag; sra_jax/configuration.py lists all, with their defaults.

  python -m sra_jax.train --config=configs/digits.py --workdir=runs/digits
  python -m sra_jax.train --config=configs/sit_sra.py:XL/2,recipe=cosine --workdir=gs://bucket/xl \\
      --config.data.path=/mnt/latents --config.mesh.fsdp=16
"""

from absl import flags
from ml_collections import config_flags

from sra_jax import command

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file, and after a colon its argument; --config.FIELD=VALUE overrides."
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Directory of the run: checkpoints, config, events."
)
command.define_process_flags()


def main() -> int:
    """Trains as the flags say."""
    from sra_jax.trainer import train  # takes seconds: once signals are heeded

    command.join_processes(stop_together=True)
    return train(command.config_dict(_CONFIG), _WORKDIR.value)


if __name__ == "__main__":
    command.run(main, __doc__, required=("config", "workdir"))
