"""SiT + SRA on ImageNet latents: the paper's recipe for every size.

    python -m sra_jax train --config=configs/sit_sra.py:XL/2 --workdir=runs/xl \\
        --config.data.path=data/imagenet

After the colon: SIZE/PATCH, with SIZE one of S, B, L, XL and PATCH 2, 4 or 8; then, each optional,
  res=256|512    resolution of the images, whose latents are 8 times smaller
  recipe=paper   smooth-L1 at a constant 0.2, as the paper says (the default)
  recipe=release the same, decaying late in training, as the released code does
  recipe=cosine  cosine over features at 0.5, the authors' later advice
  method=none    plain SiT, with no teacher at all; or another method of docs/methods.md
  weight=0.1     another weight of the method's loss
  slice=v5e:4x4  the mesh and rematerialisation that the pod dry run found best there;
                 also v5e:16x16 and v5p:2x2x4

Samples are drawn as in the paper: along the SDE, in 250 steps, guided for t in [0, 0.7] by 1.8,
or by 2.5 at 512.

The paper's ablations are overrides:
  --config.method.sra.student_block=8 --config.method.sra.teacher_block=8   other blocks
  --config.method.sra.gap=fixed --config.method.sra.gap_max=0   a fixed gap, or none
  --config.method.sra.head=False                                no projection head
  --config.method.sra.distance=l2 --config.train.ema_decay=0.999
                                                                another distance and teacher
  --config.method.sra.teacher_fraction=0.5                      align half of each batch

Hardware: XL/2 at 256 with batch 256 fits 16 chips of a TPU v5e with slice=v5e:4x4, or wherever
python -m sra_jax compile says so; --config.model.remat=dots or full needs less memory.
Duration: 4M steps are 800 epochs; one step of XL/2 is about 230 TFLOP, so 400k steps take about
9 hours at a sustained 3 PFLOP/s. Expect the losses to fall smoothly; runs of this size have not
been made with this code, and the paper's tables say what they should reach.
"""

from ml_collections import ConfigDict

from sra_jax.config.recipes import imagenet_config


def get_config(argument: str = "XL/2") -> ConfigDict:
    return imagenet_config(argument, kind="sit")
