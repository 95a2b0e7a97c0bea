"""References: files of statistics, of ADM's form or our own, and sets of images.

A file of statistics is an .npz with `mu` [2048] and `sigma` [2048, 2048] of the pool features, and
`mu_s` [2023] and `sigma_s` [2023, 2023] of the spatial ones. ADM's files also hold `arr_0`, images
for precision and recall; ours hold `points` [N, 2048], the pool features of such images, and
`resolution` [2].
"""

import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sra_jax.core.errors import InputError
from sra_jax.core.files import atomic_write
from sra_jax.data.images import (
    BROKEN,
    IMAGES,
    ArrayImages,
    ImageSet,
    NpzImages,
    describe_size,
    load_labelled,
    open_images,
)
from sra_jax.data.loading import why_unreadable
from sra_jax.evaluation.inception import POOL_WIDTH, SPATIAL_WIDTH
from sra_jax.evaluation.statistics import Gaussian, Summary

POINTS = "points"
RESOLUTION = "resolution"
POOL_NAMES = ("mu", "sigma")
SPATIAL_NAMES = ("mu_s", "sigma_s")


class Reference(NamedTuple):
    """The real images, or their statistics, that samples are compared with.

    Statistics that `summary` lacks are to be measured from `images`, which is None if it lacks
    none. `resolution` is None if a file of statistics does not hold it.
    """

    name: str
    summary: Summary
    images: ImageSet | None
    resolution: tuple[int, int] | None


def open_reference(path: str, metrics: Collection[str]) -> Reference:
    """The reference at `path`: an .npz of statistics, or a set of images (see `open_images`).

    Raises:
      InputError: it does not hold what `metrics` need.
    """
    names = _array_names(path)
    if not names & {*POOL_NAMES, *SPATIAL_NAMES, POINTS}:
        images = open_images(path)
        return Reference(path, Summary(), images, images.resolution)
    images = NpzImages(Path(path)) if IMAGES in names else None
    try:
        with np.load(path, allow_pickle=False) as arrays:
            summary = _read_summary(path, arrays, metrics, images)
            resolution = (
                tuple(arrays[RESOLUTION].ravel().tolist()) if RESOLUTION in arrays else None
            )
    except InputError:
        raise
    except BROKEN as error:
        raise InputError(
            f"{path} is damaged or holds other arrays ({why_unreadable(error)}); take another "
            "reference"
        ) from None
    left = "pr" in metrics and summary.points is None
    return Reference(
        path, summary, images if left else None, images.resolution if images else resolution
    )


def open_labelled_reference(path: str) -> tuple[Reference, np.ndarray]:
    """The images at `path`, an .npz or an embedded set, and their labels [N].

    Raises:
      InputError: see `load_labelled`; or all images are of one class.
    """
    images, labels = load_labelled(path)
    if len(np.unique(labels)) < 2:
        raise InputError(
            f"{path} holds images of class {labels[0]} alone, expected two classes or more; choose "
            "another reference"
        )
    found = ArrayImages(path, images)
    return Reference(path, Summary(), found, found.resolution), labels


def expect_one_size(name: str, resolution: tuple[int, int], reference: Reference) -> None:
    """Raises InputError if the reference's images have another size than those of the set called
    `name`. A reference of unknown size passes."""
    if reference.resolution not in (None, resolution):
        raise InputError(
            f"{name} holds images of {describe_size(resolution)}, {reference.name} of "
            f"{describe_size(reference.resolution)}; choose a reference of the same resolution"
        )


def save_reference(path: str, summary: Summary, resolution: tuple[int, int] | None) -> None:
    """Writes `summary` to `path` atomically."""
    arrays = {POINTS: summary.points, RESOLUTION: resolution}
    for names, gaussian in ((POOL_NAMES, summary.pool), (SPATIAL_NAMES, summary.spatial)):
        if gaussian:
            arrays |= dict(zip(names, gaussian, strict=True))
    with atomic_write(Path(path)) as scratch, scratch.open("wb") as file:
        np.savez(file, **{name: array for name, array in arrays.items() if array is not None})


def _array_names(path: str) -> set[str]:
    """Names of the arrays in the .npz at `path`; none if it is another kind of file."""
    try:
        with zipfile.ZipFile(path) as archive:
            return {name.removesuffix(".npy") for name in archive.namelist()}
    except BROKEN:
        return set()


def _read_summary(
    path: str, arrays: Mapping[str, np.ndarray], metrics: Collection[str], images: ImageSet | None
) -> Summary:
    pool = spatial = points = None
    if "fid" in metrics:
        pool = _read_gaussian(path, arrays, POOL_NAMES, POOL_WIDTH)
    if "sfid" in metrics:
        spatial = _read_gaussian(path, arrays, SPATIAL_NAMES, SPATIAL_WIDTH)
    if "pr" in metrics and (POINTS in arrays or images is None):
        points = _read(path, arrays, POINTS, (None, POOL_WIDTH)).astype(np.float32)
    return Summary(pool, spatial, points)


def _read_gaussian(
    path: str, arrays: Mapping[str, np.ndarray], names: tuple[str, str], width: int
) -> Gaussian:
    mean, covariance = names
    return Gaussian(
        _read(path, arrays, mean, (width,)).astype(np.float64),
        _read(path, arrays, covariance, (width, width)).astype(np.float64),
    )


def _read(
    path: str, arrays: Mapping[str, np.ndarray], name: str, shape: tuple[int | None, ...]
) -> np.ndarray:
    """Array `name`, checked. None in `shape` allows any length."""
    if name not in arrays:
        raise InputError(
            f"{path} lacks {name}; leave out the metrics that need it, or take another reference"
        )
    array = arrays[name]
    expected = shape if None not in shape else (len(array) if array.ndim else 0, *shape[1:])
    if array.shape != expected or array.dtype.kind != "f" or not np.isfinite(array).all():
        wanted = ", ".join("N" if size is None else str(size) for size in shape)
        raise InputError(
            f"{path} holds {name} {array.dtype} {array.shape}, expected finite numbers "
            f"[{wanted}]; take another reference"
        )
    return array
