"""Which images a probe learns from, and on which it is tried."""

import os

import numpy as np

from sra_jax.core.errors import InputError
from sra_jax.data.records import LatentSource, open_latents
from sra_jax.data.spec import LatentSpec
from sra_jax.probing.features import Selection, select

TEST_SHARE = 0.2


def open_fitting(directory: str | os.PathLike, wanted: LatentSpec) -> LatentSource:
    """Opens the latents at `directory`, which must be as those that the model was trained on.

    Raises:
      InputError: no such data, or other latents, or other classes.
    """
    source = open_latents(directory)
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


def hold_out(
    data: LatentSource, test_data: LatentSource | None, num: int, seed: int
) -> tuple[Selection, Selection]:
    """The images to learn from, and those to be tried on.

    Up to `num` images of `data` (0: all), drawn by `seed`; a fifth of them is held out, unless
    there are `test_data`, of which again up to `num` are drawn. Of a set that holds each image
    mirrored too, only the images themselves: a mirror image on the other side would give the answer
    away.

    Raises:
      InputError: fewer images than classes, or a damaged record.
    """
    drawn = _draw(data, num, seed)
    if test_data is None:
        held = round(len(drawn) * TEST_SHARE)
        train, test = drawn[held:], drawn[:held]
    else:
        train, test = drawn, _draw(test_data, num, seed)
    classes = data.spec.num_classes
    for name, numbers in {"learn from": train, "be tried on": test}.items():
        if len(numbers) < classes:
            raise InputError(
                f"a probe would {name} {len(numbers)} images, of {classes} classes, expected at "
                "least one a class; give more images (--num, --data or --test_data)"
            )
    return select(data, np.sort(train)), select(test_data or data, np.sort(test))


def _draw(source: LatentSource, num: int, seed: int) -> np.ndarray:
    numbers = np.arange(0, len(source), 2 if source.spec.flips else 1)
    return np.random.default_rng(seed).permutation(numbers)[: num or None]
