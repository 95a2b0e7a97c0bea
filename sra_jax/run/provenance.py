"""Digests of a run's code and data, so that a resumed run notices when they have changed."""

import hashlib
from importlib import metadata
from pathlib import Path

PACKAGES = ("jax", "flax", "optax")
# The source that decides the numbers of a run: packages and modules below sra_jax.
NUMERIC = (
    "conditioning",
    "core/random.py",
    "core/shapes.py",
    "data/pipeline.py",
    "methods",
    "models",
    "processes",
    "training/objective.py",
    "training/optimizer.py",
    "training/state.py",
    "training/step.py",
)
PACKAGE = Path(__file__).parents[1]
PROBED_BYTES = 2**16  # read at each end of a record file; its index is at the end


def code_version() -> dict[str, str]:
    """Returns the versions of `PACKAGES`, and as "source" a digest of `NUMERIC`."""
    digest = hashlib.sha256()
    for name in NUMERIC:
        path = PACKAGE / name
        for source in sorted(path.glob("*.py")) if path.is_dir() else [path]:
            digest.update(source.read_bytes())
    versions = {name: metadata.version(name) for name in PACKAGES}
    return versions | {"source": digest.hexdigest()[:16]}


def data_fingerprint(files: list[Path]) -> str:
    """Returns a digest of the names, sizes, beginnings and ends of record files.

    This is quick at any size. A record damaged in between fails its own checksum when it is read.
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
