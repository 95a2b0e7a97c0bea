"""Samples images from a trained run, with its EMA weights unless asked otherwise.

Solver, steps and guidance are those of the run's config unless given.

  python -m sra_jax sample --workdir=runs/digits --out=samples.npz --grid=samples.png --num=100
  python -m sra_jax sample --workdir=runs/xl --out=samples.npz --num=64 --labels=207,360 \\
      --solver=heun --solver_steps=50 --guidance=1.8 --guidance_interval=0,0.7

The .npz holds `arr_0`, uint8 [N, H, W, C], as the ADM evaluation suite reads it, `labels`, int32
[N], and request.json, the settings of these samples. Chunks are kept in OUT.parts until all are
done, so the same command resumes after a kill. A finished OUT is sampled again if request and
checkpoint are the same; otherwise the command refuses.
"""

from collections.abc import Sequence

from sra_jax.cli import app
from sra_jax.jobs.requests import SampleRequest


def define_flags() -> Sequence[str]:
    """Defines the flags; returns the names of those that must be given."""
    app.define_process_flags()
    return app.define_request_flags(SampleRequest)


def main() -> None:
    """Samples as the flags say."""
    from sra_jax.jobs.sample import sample  # takes seconds; signals are handled first

    app.join_processes()
    sample(app.read_request(SampleRequest))
