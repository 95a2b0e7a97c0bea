"""Package metadata of sra_jax. Version bounds are what the test suite was run against."""

import re
from pathlib import Path

from setuptools import find_packages, setup

PACKAGE = Path(__file__).parent / "sra_jax" / "__init__.py"
CORE = ["jax>=0.10.2,<0.12", "flax>=0.12.8,<0.13", "optax>=0.2.8,<0.3", "numpy>=2.0,<3"]
DATA = [
    "grain>=0.2.18,<0.3",
    "tensorflow-datasets>=4.9.10,<4.10",
    "array-record>=0.8.3,<0.9",
    "importlib_resources>=6",  # TFDS imports it on Pythons where it does not ask for it
    "scikit-learn>=1.5,<2",  # carries the digits
    "pillow>=11,<14",
    "safetensors>=0.8,<0.9",
]
RUN = [
    "orbax-checkpoint>=0.12.8,<0.13",
    "ml_collections>=1.1,<2",
    "clu>=0.0.12,<0.1",
    "tensorboard>=2.18,<3",
    "absl-py>=2.1,<3",
    "scipy>=1.13,<2",
    "matplotlib>=3.10,<4",
]
TORCH = ["torch>=2.6,<3"]  # reads .pt and .pth files
BUCKET = ["gcsfs>=2025.9,<2027"]  # opens gs://
TEST = [
    "pytest>=8,<10",
    "pytest-xdist>=3.6,<4",
    "hypothesis>=6,<7",
    "gcp-storage-emulator>=2026.7,<2027",  # a bucket on this machine
    "ruff==0.17.5",
]
NOTEBOOK = ["ipykernel>=7,<8", "nbclient>=0.10,<0.12", "nbformat>=5.10,<6"]

setup(
    name="sra_jax",
    version=re.search(r'__version__ = "(.*)"', PACKAGE.read_text())[1],
    description="Self-Representation Alignment for diffusion transformers, in JAX and Flax",
    license="Apache-2.0",
    packages=find_packages(include=["sra_jax", "sra_jax.*"]),
    python_requires=">=3.11,<3.13",
    entry_points={"console_scripts": ["sra-jax = sra_jax.cli.main:main"]},
    package_data={"sra_jax": ["py.typed"]},
    install_requires=CORE + DATA + RUN,
    extras_require={
        "tpu": ["jax[tpu]>=0.10.2,<0.12", *BUCKET],  # pods keep their runs in buckets
        "cuda": ["jax[cuda12]>=0.10.2,<0.12"],
        "torch": TORCH,
        "notebook": NOTEBOOK,
        "test": [*TEST, *BUCKET, *TORCH, *NOTEBOOK],
    },
)
