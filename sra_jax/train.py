"""Trains a diffusion transformer from a config file, with Self-Representation Alignment or without.

Run the same command again and it goes on from the last checkpoint, after whatever ended it.

  python -m sra_jax.train --config=configs/digits.py --workdir=runs/digits
  python -m sra_jax.train --config=configs/sit_sra.py:XL/2,recipe=cosine --workdir=gs://bucket/xl \\
      --config.data.path=gs://bucket/latents --config.mesh.fsdp=16
"""

import jax
from absl import flags
from ml_collections import config_flags

from sra_jax import command
from sra_jax.parallel import start_processes
from sra_jax.trainer import train

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file, and after a colon its argument; --config.FIELD=VALUE overrides."
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Directory of the run: checkpoints, config, events."
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of process 0, where JAX cannot find it by itself."
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many processes, likewise.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of them this is, likewise.")


def main() -> int:
    """Trains as the flags say."""
    start_processes(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
    command.name_process(jax.process_index(), jax.process_count())
    return train(command.config_dict(_CONFIG), _WORKDIR.value)


if __name__ == "__main__":
    command.run(main, __doc__, required=("config", "workdir"))
