"""Converts PyTorch checkpoints to runs of this package, and back.

A file is recognised by its tensors: SiT and DiT as SRA, REPA, and the original releases save them,
bare or in a training checkpoint. It becomes a workdir that sample, evaluate and train take like any
other.

  python -m sra_jax convert --source=SiT-XL-2-256x256.pt --out=runs/sit_xl
  python -m sra_jax convert --source=DiT-XL-2-256x256.pt --out=runs/dit_sra --new_head
  python -m sra_jax convert --source=runs/xl --out=xl.safetensors --weights=ema

A workdir becomes a file in the layout of the SRA authors: a .safetensors holds the state dict, a
.pt holds it as "ema", where their scripts look for it. Only a .pt needs PyTorch.

An --out that is there already is refused; a conversion that was killed leaves none, and may be
repeated. What a file does not tell (solver, guidance, the length of training) is as in configs/.
The new run is sampled and evaluated with --vae=FOLDER, and probed with --data=DIR: of latents it
remembers none. The commands stand at the end of the log.
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
