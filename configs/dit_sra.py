"""DiT + SRA on ImageNet latents: the paper's recipe for every size.

    python -m sra_jax train --config=configs/dit_sra.py:XL/2,recipe=cosine --workdir=runs/dit_xl \\
        --config.data.path=data/imagenet

After the colon: SIZE/PATCH, with SIZE one of S, B, L, XL and PATCH 2, 4 or 8; then, each optional,
  res=256|512    resolution of the images, whose latents are 8 times smaller
  recipe=paper   smooth-L1 at a constant 0.2, as the paper says (the default)
  recipe=release smooth-L1 at 0.04, decaying late in training, as the released code does
  recipe=cosine  cosine over features at 0.5 (the weight is ours)
  method=none    plain DiT, with no teacher at all; or another method of docs/methods.md
  weight=0.1     another weight of the method's loss
  slice=v5e:4x4  the mesh and rematerialisation that the pod dry run found best there;
                 also v5e:16x16 and v5p:2x2x4

Cosine is the safe choice for XL: a user of the released code saw the smooth-L1 alignment diverge
there; the authors put it down to feature norms that keep growing, and advise cosine. Watch
`teacher_feature_norm` among the events.

Ablations, hardware and duration are as in configs/sit_sra.py; a DiT differs in its process: 1000
discrete steps, noise and variance predicted, guidance by 1.5 on the first three channels.
"""

from ml_collections import ConfigDict

from sra_jax.config.recipes import imagenet_config


def get_config(argument: str = "XL/2") -> ConfigDict:
    return imagenet_config(argument, kind="dit")
