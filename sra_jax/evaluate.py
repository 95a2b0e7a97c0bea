"""Measures images against a reference, as the ADM evaluation suite does: FID, sFID, IS, P and R.

  python -m sra_jax.evaluate --samples=samples.npz --reference=VIRTUAL_imagenet256_labeled.npz \\
      --inception=pt_inception-2015-12-05-6726825d.pth
  python -m sra_jax.evaluate --reference=FOLDER --save_reference=reference.npz --inception=FILE
  python -m sra_jax.evaluate --workdir=runs/xl --num=10000 --reference=FILE --inception=FILE
  python -m sra_jax.evaluate --workdir=runs/xl --watch --num=10000 --reference=FILE --inception=FILE
  python -m sra_jax.evaluate --samples=samples.npz --reference=embedded:digits [--features=probe]

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

from absl import flags

from sra_jax import command

_SAMPLES = flags.DEFINE_string("samples", None, "Images to measure.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Run to draw them from, with its EMA weights.")
_NUM = flags.DEFINE_integer("num", None, "How many to draw from --workdir; 50,000 if not given.")
_VAE = flags.DEFINE_string("vae", None, "Folder of the VAE's weights, for latents of codec sd_vae.")
_REFERENCE = flags.DEFINE_string(
    "reference", None, "Real images, their statistics, embedded:digits or embedded:shapes."
)
_STEP = flags.DEFINE_integer("step", None, "Checkpoint of --workdir; the newest if not given.")
_WATCH = flags.DEFINE_bool("watch", False, "Measure the checkpoints of --workdir as they appear.")
_FEATURES = flags.DEFINE_string(
    "features", None, "inception, probe or pixels; the first with --inception, else the last."
)
_METRICS = flags.DEFINE_string("metrics", None, "Some of fid,sfid,is,pr; all of them if not given.")
_INCEPTION = flags.DEFINE_string("inception", None, "Inception's weights, .pth or .safetensors.")
_SAVE = flags.DEFINE_string("save_reference", None, "File for the reference's statistics, .npz.")
command.define_process_flags()


def main() -> None:
    """Evaluates as the flags say."""
    # They take seconds to import: only once signals are heeded.
    from sra_jax.evaluator import EvaluateRequest, evaluate
    from sra_jax.watcher import watch

    command.join_processes()
    request = EvaluateRequest(
        reference=_REFERENCE.value,
        samples=_SAMPLES.value,
        workdir=_WORKDIR.value,
        num=_NUM.value,
        vae=_VAE.value,
        step=_STEP.value,
        features=_FEATURES.value,
        metrics=_METRICS.value,
        inception=_INCEPTION.value,
        save_reference=_SAVE.value,
    )
    if _WATCH.value:
        watch(request)
    else:
        evaluate(request)


if __name__ == "__main__":
    command.run(main, __doc__, required=("reference",))
