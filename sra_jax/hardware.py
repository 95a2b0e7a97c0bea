"""What accelerators can do, from data sheets: dense bfloat16, memory, interconnect."""

from typing import NamedTuple

import jax


class Chip(NamedTuple):
    """Per JAX device: operations/s in bfloat16, bytes of memory, memory bytes/s, and interconnect
    bytes/s to all neighbours together (0 where it does not matter here)."""

    flops: float
    memory: float
    bandwidth: float
    interconnect: float


# By `jax.Device.device_kind`. TPU: cloud.google.com/tpu/docs, system architecture pages; NVIDIA:
# the cards' data sheets, without sparsity.
CHIPS = {
    "TPU v4": Chip(275e12, 32e9, 1228e9, 300e9),
    "TPU v5 lite": Chip(197e12, 16e9, 819e9, 200e9),
    "TPU v5": Chip(459e12, 95e9, 2765e9, 600e9),
    "TPU v5p": Chip(459e12, 95e9, 2765e9, 600e9),
    "TPU v6 lite": Chip(918e12, 32e9, 1640e9, 400e9),
    "NVIDIA A100-SXM4-40GB": Chip(312e12, 40e9, 1555e9, 600e9),
    "NVIDIA A100-SXM4-80GB": Chip(312e12, 80e9, 2039e9, 600e9),
    "NVIDIA H100 80GB HBM3": Chip(989e12, 80e9, 3350e9, 900e9),
    "NVIDIA H200": Chip(989e12, 141e9, 4800e9, 900e9),
}


def chip_of(device: jax.Device) -> Chip | None:
    """What is known of a device; None for CPUs and strangers."""
    return CHIPS.get(device.device_kind)
