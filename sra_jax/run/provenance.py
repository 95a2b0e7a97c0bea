"""A digest of a run's code, so that a resumed run notices when it has changed."""

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


def code_version() -> dict[str, str]:
    """Returns the versions of `PACKAGES`, and as "source" a digest of `NUMERIC`."""
    digest = hashlib.sha256()
    for name in NUMERIC:
        path = PACKAGE / name
        for source in sorted(path.glob("*.py")) if path.is_dir() else [path]:
            digest.update(source.read_bytes())
    versions = {name: metadata.version(name) for name in PACKAGES}
    return versions | {"source": digest.hexdigest()[:16]}
