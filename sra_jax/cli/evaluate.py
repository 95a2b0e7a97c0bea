"""Measures images against a reference, as the ADM suite: FID, sFID, IS, precision and recall.

  python -m sra_jax evaluate --samples=samples.npz --reference=VIRTUAL_imagenet256_labeled.npz \\
      --inception=pt_inception-2015-12-05-6726825d.pth
  python -m sra_jax evaluate --reference=FOLDER --save_reference=reference.npz --inception=FILE
  python -m sra_jax evaluate --workdir=runs/xl --num=10000 --reference=FILE --inception=FILE
  python -m sra_jax evaluate --workdir=runs/xl --watch --num=10000 --reference=FILE --inception=FILE
  python -m sra_jax evaluate --samples=samples.npz --reference=embedded:digits

Images are an .npz with `arr_0`, uint8 [N, H, W, C], a folder, tfds:NAME, embedded:digits or
embedded:shapes; a reference may also be statistics, as ADM or --save_reference write them.
Inception's weights come from https://github.com/mseitzer/pytorch-fid/releases/tag/fid_weights.
Without them (--features=classifier) a small classifier, trained on the reference, replaces
Inception. The reference must then have labels: an .npz with `labels` [N] beside `arr_0`,
embedded:digits or embedded:shapes. These numbers serve sets like the digits and are not comparable
with published ones. Prints a table, and the numbers as one line of JSON.

--watch measures the checkpoints of a run as they appear, in another process than the training,
until the last one. The numbers go to WORKDIR/evaluation.jsonl and TensorBoard; the run keeps its
best checkpoint.
"""

from collections.abc import Sequence

from absl import flags

from sra_jax.cli import app
from sra_jax.jobs.requests import EvaluateRequest


def define_flags() -> Sequence[str]:
    """Defines the flags; returns the names of those that must be given."""
    flags.DEFINE_bool("watch", False, "Measure the checkpoints of --workdir as they appear.")
    app.define_process_flags()
    return app.define_request_flags(EvaluateRequest)


def main() -> None:
    """Evaluates as the flags say."""
    # Imported here because it takes seconds, and signals are handled first.
    from sra_jax.jobs.evaluate import evaluate
    from sra_jax.jobs.watch import watch

    app.join_processes()
    request = app.read_request(EvaluateRequest)
    if flags.FLAGS.watch:
        watch(request)
    else:
        evaluate(request)
