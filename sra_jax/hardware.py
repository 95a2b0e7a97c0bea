"""What accelerators can do, which TPU slices exist, and what XLA must be told about them."""

from typing import NamedTuple

import jax

from sra_jax.errors import InputError


class Chip(NamedTuple):
    """Per JAX device: operations/s in bfloat16, bytes of memory that a program may use, memory
    bytes/s, and bytes/s sent to all neighbours together (0 where it does not matter here)."""

    flops: float
    memory: float
    bandwidth: float
    interconnect: float


GIB = 2**30

# By `jax.Device.device_kind`. TPU: speeds from docs.cloud.google.com/tpu/docs, halved where a chip
# is two devices, the interconnect's one way only; memory as libtpu 0.0.42 refuses what exceeds it.
# NVIDIA: the cards' data sheets, without sparsity.
CHIPS = {
    "TPU v3": Chip(61.5e12, 15.48 * GIB, 450e9, 164e9),
    "TPU v4": Chip(275e12, 30.75 * GIB, 1228e9, 300e9),
    "TPU v5 lite": Chip(197e12, 15.75 * GIB, 819e9, 200e9),
    "TPU v5": Chip(459e12, 95.74 * GIB, 2765e9, 600e9),
    "TPU v5p": Chip(459e12, 95.74 * GIB, 2765e9, 600e9),
    "TPU v6 lite": Chip(918e12, 31.25 * GIB, 1638e9, 400e9),
    "TPU7x": Chip(1153.5e12, 94.75 * GIB, 3690e9, 300e9),
    "NVIDIA A100-SXM4-40GB": Chip(312e12, 40e9, 1555e9, 600e9),
    "NVIDIA A100-SXM4-80GB": Chip(312e12, 80e9, 2039e9, 600e9),
    "NVIDIA H100 80GB HBM3": Chip(989e12, 80e9, 3350e9, 900e9),
    "NVIDIA H200": Chip(989e12, 141e9, 4800e9, 900e9),
}

_PLANES = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_TORI = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16")

# Slices of whole hosts that Google rents and XLA knows, by family: chips along each dimension.
SLICES = {
    "v3": ("2x2", "4x4", "4x8", "8x8", "8x16", "16x16", "16x32", "32x32"),
    "v4": (*_TORI, "8x16x16"),
    "v5e": _PLANES,
    "v5p": (*_TORI, "8x16x16", "16x16x16", "16x16x24"),
    "v6e": _PLANES,
    "tpu7x": (*_TORI, "8x16x16", "16x16x16"),
}

# Beside XLA's defaults; benchmarks/RESULTS.md has what they are worth.
TPU_OPTIONS = {
    # Gathers a layer's parameters whole, ahead of its matrix products, instead of in windows.
    "xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000",
    # Converts parameters to bfloat16 where a block uses them. Otherwise XLA keeps a second copy of
    # all blocks in bfloat16 through the whole step.
    "xla_jf_bf16_propagation": "false",
}


def chip_of(device: jax.Device) -> Chip | None:
    """What is known of a device; None for CPUs and strangers."""
    return CHIPS.get(device.device_kind)


def check_topology(name: str) -> None:
    """Raises InputError, with those that exist, unless `name` is a TPU slice as "v5e:4x4"."""
    family, _, slice_ = name.partition(":")
    if slice_ in SLICES.get(family, ()):
        return
    families = {family: SLICES[family]} if family in SLICES else SLICES
    known = "; ".join(f"{key}: {' '.join(sizes)}" for key, sizes in families.items())
    raise InputError(f"unknown topology {name!r}, expected FAMILY:SIZE among {known}")


def compiler_options(platform: str) -> dict[str, str]:
    """What XLA is told when it compiles a step for `platform`, "cpu", "gpu" or "tpu"."""
    return dict(TPU_OPTIONS) if platform == "tpu" else {}
