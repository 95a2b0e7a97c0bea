"""The published sizes, by name: "XL/2" is the extra-large model with patches of two pixels."""

from typing import NamedTuple

from sra_jax.core.errors import InputError, expect_one_of

PATCH_SIZES = (2, 4, 8)


class Size(NamedTuple):
    """Depth, width and heads (DiT table 1)."""

    depth: int
    width: int
    num_heads: int


SIZES = {
    "S": Size(12, 384, 6),
    "B": Size(12, 768, 12),
    "L": Size(24, 1024, 16),
    "XL": Size(28, 1152, 16),
}


def parse_variant(name: str) -> tuple[Size, int]:
    """ "XL/2" -> (the size, patch size). Raises InputError for an unknown name."""
    size, slash, patch = name.partition("/")
    if not slash or patch not in map(str, PATCH_SIZES):
        raise InputError(
            f"unknown model {name!r}, expected SIZE/PATCH with a size of {', '.join(SIZES)} and a "
            f"patch of {', '.join(map(str, PATCH_SIZES))}, as in XL/2"
        )
    expect_one_of("model size", size, SIZES)
    return SIZES[size], int(patch)


def name_variant(width: int, depth: int, num_heads: int, patch_size: int) -> str | None:
    """ "XL/2" for the shape of that model; None for a shape that was not published."""
    for name, size in SIZES.items():
        if size == (depth, width, num_heads) and patch_size in PATCH_SIZES:
            return f"{name}/{patch_size}"
    return None
