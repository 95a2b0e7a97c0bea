"""How many floating-point operations a step takes, counted from the model's shape.

Matrix products only, two operations a multiply-add. XLA's own count sees a scanned body once, so it
cannot be used; a test compares this one with an unrolled compile.
"""

from typing import NamedTuple

from sra_jax.methods.sra import SRAConfig
from sra_jax.models import TransformerConfig


class StepFlops(NamedTuple):
    """Operations for one image in one training step."""

    student_forward: int
    teacher_forward: int
    head_forward: int
    backward: int
    recomputed: int

    @property
    def useful(self) -> int:
        """What the method needs: all but what rematerialisation computes again. MFU counts this."""
        return self.student_forward + self.teacher_forward + self.head_forward + self.backward

    @property
    def total(self) -> int:
        return self.useful + self.recomputed


def step_flops(config: TransformerConfig, sra: SRAConfig | None) -> StepFlops:
    """The operations of a step on `config`, aligned as `sra` says (None: not at all).

    The backward pass takes twice the forward pass of what is trained. The teacher has none; it and
    the head see only the images that are aligned.
    """
    forward = forward_flops(config)
    head = head_flops(config) // sra.stride if sra is not None and sra.head else 0
    teacher = forward_flops(config, sra.teacher_block) // sra.stride if sra is not None else 0
    blocks = config.depth * block_flops(config)
    return StepFlops(
        student_forward=forward,
        teacher_forward=teacher,
        head_forward=head,
        backward=2 * (forward + head),
        # "dots" keeps the matrix products; only attention's two are computed again.
        recomputed={
            "none": 0,
            "dots": config.depth * attention_flops(config),
            "full": blocks,
        }[config.remat],
    )


def forward_flops(config: TransformerConfig, stop_at: int | None = None) -> int:
    """Operations of one image's forward pass, whole or up to block `stop_at`."""
    tokens, width = config.num_tokens, config.width
    values = config.patch_size**2
    embeddings = tokens * values * config.in_channels * width + 256 * width + width**2
    final = 2 * width**2 + tokens * width * values * config.out_channels
    if stop_at is not None:
        return 2 * embeddings + stop_at * block_flops(config)
    return 2 * (embeddings + final) + config.depth * block_flops(config)


def block_flops(config: TransformerConfig) -> int:
    """Operations of one block on one image."""
    tokens, width = config.num_tokens, config.width
    linear = (4 + 2 * config.mlp_ratio) * tokens * width**2
    return 2 * (linear + 6 * width**2) + attention_flops(config)


def attention_flops(config: TransformerConfig) -> int:
    """Operations of one block's scores and of their product with the values, on one image."""
    return 2 * 2 * config.num_tokens**2 * config.width


def head_flops(config: TransformerConfig) -> int:
    """Operations of the projection head on one image."""
    return 2 * 4 * config.num_tokens * config.width**2
