"""Compiles a config's train step for a TPU pod, on a machine that has none: does it fit, how fast?

Nothing runs and no data are needed. The program is the one that the trainer would run there. What
it says about speed are estimates. Needs `pip install -e .[tpu]`.

  python -m sra_jax.compile --config=configs/sit_sra.py:XL/2 --topology=v5e:4x4 \\
      --config.mesh.fsdp=16 --config.model.remat=full
  python -m sra_jax.compile --config=configs/sit_sra.py:XL/2 --topology=v5p:2x2x4 --sweep
  python -m sra_jax.compile --config=configs/sit_sra.py:XL/2 --topology=v6e:2x2 --sampler

Exits with 0 also when the answer is that it does not fit.
"""

import os

from absl import flags
from ml_collections import config_flags

from sra_jax import command
from sra_jax.errors import InputError

# libtpu compiles on a machine without TPUs if it is told not to look for one.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_MIN_LOG_LEVEL": "3",
}

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file, and after a colon its argument; --config.FIELD=VALUE overrides."
)
_TOPOLOGY = flags.DEFINE_string("topology", None, "TPU slice: v5e:4x4, v4:2x2x4 and so on.")
_SWEEP = flags.DEFINE_bool("sweep", False, "Try and rank meshes and rematerialisation policies.")
_SAMPLER = flags.DEFINE_bool("sampler", False, "Compile the config's sampler instead.")
_SAMPLER_BATCH = flags.DEFINE_integer("sampler_batch", 256, "Images it draws at a time.")


def main() -> None:
    """Compiles as the flags say."""
    from sra_jax import compiler  # imports jax, which reads the environment

    config = command.config_dict(_CONFIG)
    if _SWEEP.value and _SAMPLER.value:
        raise InputError("--sweep tries train steps; leave out --sampler or --sweep")
    if _SWEEP.value:
        compiler.sweep(config, _TOPOLOGY.value)
    elif _SAMPLER.value:
        compiler.sampler(config, _TOPOLOGY.value, _SAMPLER_BATCH.value)
    else:
        compiler.train_step(config, _TOPOLOGY.value)


if __name__ == "__main__":
    os.environ.update(ENVIRONMENT)  # before the config file imports jax
    command.run(main, __doc__, required=("config", "topology"))
