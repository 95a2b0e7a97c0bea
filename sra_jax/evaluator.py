"""From a file of samples to numbers about them."""

import json
import logging
import zipfile
from pathlib import Path

import numpy as np

from sra_jax.data.digits import load_digits
from sra_jax.errors import InputError
from sra_jax.evaluation.pixels import pixel_report
from sra_jax.trainer import EMBEDDED_DIGITS

_log = logging.getLogger(__name__)


def evaluate(samples: str, reference: str) -> None:
    """Compares a file of samples with reference images; logs a table and prints one JSON line.

    Raises:
      InputError: a file is missing or not of the form that `sra_jax.sample` writes, or the two sets
        are of different shapes.
    """
    images, labels = load_images(samples)
    real_images, real_labels = load_images(reference)
    if images.shape[1:] != real_images.shape[1:]:
        raise InputError(
            f"{samples} holds images of shape {images.shape[1:]}, {reference} of "
            f"{real_images.shape[1:]}; choose a reference of the same resolution"
        )
    report = pixel_report(images, labels, real_images, real_labels)
    rows = {
        "samples": f"{len(images):,} against {len(real_images):,} real images",
        "class agreement": f"{report.class_agreement:.1%} of samples look like the class asked for",
        "Fréchet distance": f"{report.frechet:.3f} in pixel space",
        "its floor": f"{report.frechet_floor:.3f}, one half of the data against the other",
        "times the floor": f"{report.frechet / report.frechet_floor:.1f}",
    }
    for name, value in rows.items():
        _log.info("%-18s%s", name, value)
    print(json.dumps({"samples": samples, "reference": reference} | report._asdict()))


def load_images(path: str) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [N, H, W, C] and labels [N] of an .npz, or the embedded digits.

    Raises:
      InputError: no such file, or not of that form.
    """
    if path == EMBEDDED_DIGITS:
        return load_digits()
    if not Path(path).is_file():
        raise InputError(f"no file {path}; write it with sra_jax.sample, or check the path")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            images, labels = arrays["arr_0"], arrays["labels"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is not an .npz with arr_0 and labels ({error})") from None
    if images.dtype != np.uint8 or images.ndim != 4 or labels.shape != images.shape[:1]:
        raise InputError(
            f"{path} holds arr_0 {images.dtype} {images.shape} and labels {labels.shape}, expected "
            "uint8 [N, H, W, C] and [N]"
        )
    if len(images) < 2:
        raise InputError(f"{path} holds {len(images)} images, expected at least 2")
    return images, labels
