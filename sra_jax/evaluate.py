"""Measures images against a reference, as the ADM evaluation suite does: FID, sFID, IS, P and R.

  python -m sra_jax.evaluate --samples=samples.npz --reference=VIRTUAL_imagenet256_labeled.npz \\
      --inception=pt_inception-2015-12-05-6726825d.pth
  python -m sra_jax.evaluate --reference=FOLDER --save_reference=reference.npz --inception=FILE
  python -m sra_jax.evaluate --workdir=runs/xl --num=10000 --reference=FILE --inception=FILE
  python -m sra_jax.evaluate --samples=samples.npz --reference=embedded:digits

Images are an .npz with `arr_0`, uint8 [N, H, W, C], a folder, or embedded:digits; a reference may
also be statistics, as ADM or --save_reference write them. Inception's weights come from
https://github.com/mseitzer/pytorch-fid/releases/tag/fid_weights. Without them, as in the last line,
images with labels are compared in pixel space, which serves the digits, and is not comparable with
published FID. Prints a table, and the numbers as one line of JSON.
"""

from absl import flags

from sra_jax import command

_SAMPLES = flags.DEFINE_string("samples", None, "Images to measure.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Run to draw them from, with its EMA weights.")
_NUM = flags.DEFINE_integer("num", None, "How many to draw from --workdir; 50,000 if not given.")
_VAE = flags.DEFINE_string("vae", None, "Folder of the VAE's weights, for latents of codec sd_vae.")
_REFERENCE = flags.DEFINE_string("reference", None, "Real images, or their statistics.")
_METRICS = flags.DEFINE_string("metrics", None, "Some of fid,sfid,is,pr; all if not given.")
_INCEPTION = flags.DEFINE_string("inception", None, "Inception's weights, .pth or .safetensors.")
_SAVE = flags.DEFINE_string("save_reference", None, "File for the reference's statistics, .npz.")


def main() -> None:
    """Evaluates as the flags say."""
    from sra_jax.evaluator import (
        EvaluateRequest,
        evaluate,
    )  # takes seconds: once signals are heeded

    evaluate(
        EvaluateRequest(
            reference=_REFERENCE.value,
            samples=_SAMPLES.value,
            workdir=_WORKDIR.value,
            num=_NUM.value,
            vae=_VAE.value,
            metrics=_METRICS.value,
            inception=_INCEPTION.value,
            save_reference=_SAVE.value,
        )
    )


if __name__ == "__main__":
    command.run(main, __doc__, required=("reference",))
