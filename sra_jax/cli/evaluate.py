"""Measures images against a reference, as the ADM evaluation suite does: FID, sFID, IS, P and R.

  python -m sra_jax evaluate --samples=samples.npz --reference=VIRTUAL_imagenet256_labeled.npz \\
      --inception=pt_inception-2015-12-05-6726825d.pth
  python -m sra_jax evaluate --reference=FOLDER --save_reference=reference.npz --inception=FILE
  python -m sra_jax evaluate --workdir=runs/xl --num=10000 --reference=FILE --inception=FILE
  python -m sra_jax evaluate --workdir=runs/xl --watch --num=10000 --reference=FILE --inception=FILE
  python -m sra_jax evaluate --samples=samples.npz --reference=embedded:digits [--features=probe]

Images are an .npz with `arr_0`, uint8 [N, H, W, C], a folder, tfds:NAME, embedded:digits or
embedded:shapes; a reference may also be statistics, as ADM or --save_reference write them.
Inception's weights come from https://github.com/mseitzer/pytorch-fid/releases/tag/fid_weights.
Without them the reference is an .npz with `labels` [N] too, embedded:digits or embedded:shapes:
with --features=probe a small classifier learns it, else labelled --samples are compared in pixel
space. This serves sets like the digits, and is not comparable with published FID. --workdir and
--watch need --inception or --features=probe. Prints a table, and the numbers as one line of JSON.

--watch measures the checkpoints of a run as they appear, in a process of its own, until the last;
the numbers go to WORKDIR/evaluation.jsonl and TensorBoard, and the run keeps its best checkpoint.
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
    # They take seconds to import: only once signals are handled.
    from sra_jax.jobs.evaluate import evaluate
    from sra_jax.jobs.watch import watch

    app.join_processes()
    request = app.read_request(EvaluateRequest)
    if flags.FLAGS.watch:
        watch(request)
    else:
        evaluate(request)
