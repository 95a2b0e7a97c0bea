"""What a run was made with, beside its config: versions, the code itself, and the data's bytes."""

import hashlib
from importlib import metadata
from pathlib import Path

PACKAGES = ("jax", "flax", "optax")
# What of the code decides the numbers of a run; the rest moves, shows or checks them.
NUMERIC = (
    "models",
    "processes",
    "sra.py",
    "randomness.py",
    "data/pipeline.py",
    "training/step.py",
    "training/optimizer.py",
    "training/state.py",
)
PROBED_BYTES = 2**16  # at either end of a record file; the end holds its index


def code_version() -> dict[str, str]:
    """Versions of what computes, and a digest of the source that decides the numbers."""
    root, digest = Path(__file__).parent, hashlib.sha256()
    for name in NUMERIC:
        for path in sorted([root / name, *(root / name).glob("*.py")]):
            if path.is_file():
                digest.update(path.read_bytes())
    versions = {name: metadata.version(name) for name in PACKAGES}
    return versions | {"source": digest.hexdigest()[:16]}


def data_fingerprint(files: list[Path]) -> str:
    """A digest of the record files' names, sizes, beginnings and ends: other data have another.

    Quick at any size. A record that is damaged in between fails its own checksum when it is read.
    """
    digest = hashlib.sha256()
    for path in sorted(files, key=lambda path: path.name):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            digest.update(file.read(PROBED_BYTES))
            file.seek(max(size - PROBED_BYTES, 0))
            digest.update(file.read())
    return digest.hexdigest()[:16]
