"""Asks how much each block of a run's model knows, at each level of noise.

  python -m sra_jax probe --workdir=runs/digits
  python -m sra_jax probe --workdir=runs/xl --blocks=8,20 --times=0.1,0.3,0.5 --num=0 \\
      --test_data=data/imagenet_val --protocol=paper
  python -m sra_jax probe --workdir=runs/xl --blocks=8,20 --every=100000

Fits linear classifiers to the features of --data, the run's own unless given, and tries them on
held-out images. Writes probe.json (accuracy, k-NN accuracy, effective rank, norms), heatmap.png,
depth.png and pca.png, with several checkpoints also checkpoints.png, into WORKDIR/probe, where they
replace those of an earlier probe, of whatever blocks and times: --out keeps both. Features are kept
there and used again; WORKDIR/probe/features may be deleted at any time.
"""

from collections.abc import Sequence

from sra_jax.cli import app
from sra_jax.jobs.requests import ProbeRequest


def define_flags() -> Sequence[str]:
    """Defines the flags; returns the names of those that must be given."""
    return app.define_request_flags(ProbeRequest)


def main() -> None:
    """Probes as the flags say."""
    from sra_jax.jobs.probe import probe  # takes seconds: only once signals are handled

    probe(app.read_request(ProbeRequest))
