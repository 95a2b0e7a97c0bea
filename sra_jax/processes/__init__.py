"""What "noise" means: the processes, by name."""

from sra_jax.processes.base import Process
from sra_jax.processes.ddpm import DDPM
from sra_jax.processes.interpolant import Interpolant

PROCESSES: dict[str, type[Process]] = {"interpolant": Interpolant, "ddpm": DDPM}

__all__ = ["DDPM", "PROCESSES", "Interpolant", "Process"]
