"""The TPU slices that exist."""

from sra_jax.core.errors import InputError

_PLANES = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_TORI = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16")
# Slices of whole hosts that Google rents and XLA can compile for: chips along each dimension.
SLICES = {
    "v3": ("2x2", "4x4", "4x8", "8x8", "8x16", "16x16", "16x32", "32x32"),
    "v4": (*_TORI, "8x16x16"),
    "v5e": _PLANES,
    "v5p": (*_TORI, "8x16x16", "16x16x16", "16x16x24"),
    "v6e": _PLANES,
    "tpu7x": (*_TORI, "8x16x16", "16x16x16"),
}


def check_topology(name: str) -> None:
    """Raises InputError, with those that exist, unless `name` is a TPU slice, e.g. "v5e:4x4"."""
    family, _, slice_ = name.partition(":")
    if slice_ in SLICES.get(family, ()):
        return
    families = {family: SLICES[family]} if family in SLICES else SLICES
    known = "; ".join(f"{key}: {' '.join(sizes)}" for key, sizes in families.items())
    raise InputError(f"unknown topology {name!r}, expected FAMILY:SIZE among {known}")
