"""Compiles a config's train step for a TPU pod, on a machine that has none: does it fit, how fast?

Nothing runs and no data are needed. The program is the one that the trainer would run there. What
it says about speed are estimates. Needs `pip install -e .[tpu]`.

  python -m sra_jax compile --config=configs/sit_sra.py:XL/2 --topology=v5e:4x4 \\
      --config.mesh.fsdp=16 --config.model.remat=full
  python -m sra_jax compile --config=configs/sit_sra.py:XL/2 --topology=v5p:2x2x4 --sweep
  python -m sra_jax compile --config=configs/sit_sra.py:XL/2 --topology=v6e:2x2 --sampler

Exits with 0 also when the answer is that it does not fit.
"""

import os
from collections.abc import Sequence

from sra_jax.cli import app
from sra_jax.jobs.requests import CompileRequest

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


def define_flags() -> Sequence[str]:
    """Defines the flags; returns the names of those that must be given."""
    os.environ.update(ENVIRONMENT)  # before the config file imports jax
    app.define_config_flag()
    return "config", *app.define_request_flags(CompileRequest)


def main() -> None:
    """Compiles as the flags say."""
    from sra_jax.jobs.compile import compile_for_slice  # imports jax, which reads the environment

    compile_for_slice(app.read_config(), app.read_request(CompileRequest))
