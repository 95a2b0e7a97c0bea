"""Converts PyTorch checkpoints to runs of this package, and back.

A file is recognised by its tensors: SiT and DiT as SRA, REPA and the original releases save them,
bare or in a training checkpoint. It becomes a workdir that sample, evaluate and train accept like
any other; the optimiser starts fresh, and REPA's projectors are dropped.

  python -m sra_jax convert --source=SiT-XL-2-256x256.pt --out=runs/sit_xl
  python -m sra_jax convert --source=DiT-XL-2-256x256.pt --out=runs/dit_xl
  python -m sra_jax convert --source=runs/xl --out=xl.safetensors --weights=ema

A workdir becomes a file in the layout of the SRA authors: a .safetensors holds the state dict, a
.pt holds it as "ema", where their scripts look for it. Only a .pt needs PyTorch.

An --out that exists is refused. A killed conversion leaves no --out and can be repeated. Settings
that a file does not hold (solver, guidance, number of training steps) are those of configs/. The
new run has no data set: sample and evaluate it with --vae=FOLDER, and probe it with --data=DIR. The
log ends with these commands.
"""

from collections.abc import Sequence

from sra_jax.cli import app
from sra_jax.jobs.requests import ConvertRequest


def define_flags() -> Sequence[str]:
    """Defines the flags; returns the names of those that must be given."""
    return app.define_request_flags(ConvertRequest)


def main() -> None:
    """Converts as the flags say."""
    from sra_jax.jobs.convert import convert  # takes seconds: only once signals are handled

    convert(app.read_request(ConvertRequest))
