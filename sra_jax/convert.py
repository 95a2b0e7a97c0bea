"""Converts PyTorch checkpoints to runs of this package, and back.

A file is recognised by its tensors: SiT and DiT as SRA, REPA, and the original releases save them,
bare or in a training checkpoint. It becomes a workdir that sample, evaluate and train take like any
other.

  python -m sra_jax.convert --source=SiT-XL-2-256x256.pt --out=runs/sit_xl
  python -m sra_jax.convert --source=step-400000.pt --out=runs/xl --optimizer=carried
  python -m sra_jax.convert --source=DiT-XL-2-256x256.pt --out=runs/dit_sra --new_head
  python -m sra_jax.convert --source=runs/xl --out=xl.safetensors --weights=ema

A workdir becomes a file in the layout of the SRA authors: a .safetensors holds the state dict, a
.pt holds it as "ema", where their scripts look for it. Only a .pt needs PyTorch.

An --out that is there already is refused; a conversion that was killed leaves none, and may be
repeated. What a file does not tell (solver, guidance, the length of training) is as in configs/.
The new run is sampled and evaluated with --vae=FOLDER, and probed with --data=DIR: of latents it
remembers none. The commands stand at the end of the log.
"""

from absl import flags

from sra_jax import command

_SOURCE = flags.DEFINE_string("source", None, "File (.pt, .pth, .safetensors), or workdir.")
_OUT = flags.DEFINE_string("out", None, "Workdir to make, or file to write (.pt, .safetensors).")
_NUM_HEADS = flags.DEFINE_integer(
    "num_heads", None, "Attention heads, where neither the file nor the model's width tells."
)
_LAYOUT = flags.DEFINE_string(
    "layout",
    None,
    "Whose model it is, where that cannot be told: sra, repa, sit or dit (original).",
)
_RESOLUTION = flags.DEFINE_integer(
    "resolution", None, "Of the images, to go on at another one: a new position table is made."
)
_OPTIMIZER = flags.DEFINE_string(
    "optimizer", "fresh", "For training: fresh, or carried over from the file."
)
_NEW_HEAD = flags.DEFINE_bool(
    "new_head", False, "Make a projection head, to train with SRA what has none."
)
_KEEP_PROJECTORS = flags.DEFINE_bool(
    "keep_projectors", False, "Keep REPA's projectors beside the weights, to be exported again."
)
_ALLOW_MISMATCH = flags.DEFINE_bool(
    "allow_mismatch", False, "Drop tensors that are left over, and initialise those missing."
)
_WEIGHTS = flags.DEFINE_string("weights", "ema", "Of a workdir: ema or student.")
_STEP = flags.DEFINE_integer("step", None, "Of a workdir: its checkpoint; the newest if not given.")


def main() -> None:
    """Converts as the flags say."""
    from sra_jax.converter import ConvertRequest, convert  # takes seconds: once signals are heeded

    convert(
        ConvertRequest(
            source=_SOURCE.value,
            out=_OUT.value,
            num_heads=_NUM_HEADS.value,
            layout=_LAYOUT.value,
            resolution=_RESOLUTION.value,
            optimizer=_OPTIMIZER.value,
            new_head=_NEW_HEAD.value,
            keep_projectors=_KEEP_PROJECTORS.value,
            allow_mismatch=_ALLOW_MISMATCH.value,
            weights=_WEIGHTS.value,
            step=_STEP.value,
        )
    )


if __name__ == "__main__":
    command.run(main, __doc__, required=("source", "out"))
