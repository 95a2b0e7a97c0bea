"""Probes the features of each block of a run's model, at each level of noise.

  python -m sra_jax probe --workdir=runs/digits
  python -m sra_jax probe --workdir=runs/xl --blocks=8,20 --times=0.1,0.3,0.5 --num=0 \\
      --test_data=data/imagenet_val --protocol=paper
  python -m sra_jax probe --workdir=runs/xl --blocks=8,20 --every=100000

Fits linear classifiers to the features of --data (by default the run's own data) and tests them on
held-out images. Writes probe.json (accuracy, k-NN accuracy, effective rank, norms), heatmap.png,
depth.png, pca.png and, for several checkpoints, checkpoints.png to WORKDIR/probe. They replace the
files of an earlier probe; give another --out to keep both. Features are cached in
WORKDIR/probe/features, which may be deleted at any time.
"""

from collections.abc import Sequence

from sra_jax.cli import app
from sra_jax.jobs.requests import ProbeRequest


def define_flags() -> Sequence[str]:
    """Defines the flags; returns the names of the required ones."""
    return app.define_request_flags(ProbeRequest)


def main() -> None:
    """Runs the probe that the flags describe."""
    from sra_jax.jobs.probe import probe  # takes seconds: only once signals are handled

    probe(app.read_request(ProbeRequest))
