"""Measures samples against real images: class agreement, and Fréchet distance in pixel space.

  python -m sra_jax.evaluate --samples=samples.npz --reference=embedded:digits

Prints a table, and the numbers as one line of JSON.
"""

from absl import flags

from sra_jax import command
from sra_jax.evaluator import evaluate

_SAMPLES = flags.DEFINE_string("samples", None, "An .npz that sra_jax.sample has written.")
_REFERENCE = flags.DEFINE_string("reference", None, "The same of real images, or embedded:digits.")


def main() -> None:
    """Evaluates as the flags say."""
    evaluate(_SAMPLES.value, _REFERENCE.value)


if __name__ == "__main__":
    command.run(main, __doc__, required=("samples", "reference"))
