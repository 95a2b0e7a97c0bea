"""Speed and memory of accelerators, and XLA's options for them."""

from typing import NamedTuple

import jax


class Chip(NamedTuple):
    """Limits of one JAX device."""

    flops: float  # operations/s in bfloat16
    memory: float  # bytes that a program may use
    bandwidth: float  # bytes/s of its memory
    interconnect: float  # bytes/s sent to all neighbours together


GIB = 2**30
# By `jax.Device.device_kind`. TPU: speeds from docs.cloud.google.com/tpu/docs, halved if a chip is
# two devices, the interconnect in one direction; memory as the limit that libtpu 0.0.42 enforces.
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
# In addition to XLA's defaults; benchmarks/RESULTS.md measures their effect.
TPU_OPTIONS = {
    # Gathers a layer's parameters whole, ahead of its matrix products, instead of in windows.
    "xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000",
    # Converts parameters to bfloat16 where a block uses them. Otherwise XLA keeps a second copy of
    # all blocks in bfloat16 through the whole step.
    "xla_jf_bf16_propagation": "false",
}


def chip_of(device: jax.Device) -> Chip | None:
    """Returns the limits of a device; None for CPUs and unknown devices."""
    return CHIPS.get(device.device_kind)


def compiler_options(platform: str) -> dict[str, str]:
    """Returns XLA's options for a step on `platform`: "cpu", "gpu" or "tpu"."""
    return dict(TPU_OPTIONS) if platform == "tpu" else {}
