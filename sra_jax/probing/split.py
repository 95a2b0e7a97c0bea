"""Train/test split for probes."""

import os

import numpy as np

from sra_jax.core.errors import InputError
from sra_jax.data.records import LatentSource, open_records
from sra_jax.data.spec import LatentSpec
from sra_jax.probing.features import Selection, select

TEST_SHARE = 0.2


def open_fitting(directory: str | os.PathLike, wanted: LatentSpec) -> LatentSource:
    """Opens a data set; its latents and classes must be like `wanted`, the model's training data.

    Raises:
      InputError: there is no data set, or its latents or classes are of another kind.
    """
    source = open_records(directory)
    for name in ("codec", "latent_shape", "scale", "shift"):
        found, expected = getattr(source.spec, name), getattr(wanted, name)
        if found != expected:
            raise InputError(
                f"{directory} holds latents of {name} {found}, the run was trained with "
                f"{expected}; choose other data, or encode them anew"
            )
    if source.spec.num_classes != wanted.num_classes:
        raise InputError(
            f"{directory} holds {source.spec.num_classes} classes, the run's data "
            f"{wanted.num_classes}; choose data of the same classes"
        )
    return source


def train_test_split(
    data: LatentSource, test_data: LatentSource | None, num: int, seed: int
) -> tuple[Selection, Selection]:
    """Chooses the images for training and testing a probe.

    If a set also holds every image mirrored, the mirror images are left out: a test image whose
    mirror image is in the training set would be too easy.

    Args:
      data: images to train on. Without `test_data` a fifth of them is held out for testing.
      test_data: images to test on.
      num: at most so many images of each set; 0 is all.
      seed: of the random choice.

    Returns:
      The training and the test images.

    Raises:
      InputError: a split has fewer images than there are classes, or a record is damaged.
    """
    drawn = _draw(data, num, seed)
    if test_data is None:
        held = round(len(drawn) * TEST_SHARE)
        train, test = drawn[held:], drawn[:held]
    else:
        train, test = drawn, _draw(test_data, num, seed)
    classes = data.spec.num_classes
    for name, numbers in {"training": train, "test": test}.items():
        if len(numbers) < classes:
            raise InputError(
                f"the probe has {len(numbers)} {name} images of {classes} classes, expected at "
                "least one a class; give more images (--num, --data or --test_data)"
            )
    return select(data, np.sort(train)), select(test_data or data, np.sort(test))


def _draw(source: LatentSource, num: int, seed: int) -> np.ndarray:
    numbers = np.arange(0, len(source), 2 if source.spec.flips else 1)
    return np.random.default_rng(seed).permutation(numbers)[: num or None]
