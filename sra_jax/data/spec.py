"""The metadata of a latent data set. Importing this needs no data library."""

import dataclasses
import math
import reprlib
from collections.abc import Callable
from numbers import Real
from typing import Any

from sra_jax.core.errors import InputError, expect_one_of
from sra_jax.core.shapes import FieldSpec

FORMAT_VERSION = 2  # 1 lacks the fields from `source` on; both are read
MAX_CLASSES = 10**6  # records are counted by class, so a damaged label must not ask for gigabytes

Test = Callable[[Any], bool]


def _integer(lowest: int, highest: float = math.inf) -> Test:
    return lambda value: type(value) is int and lowest <= value <= highest  # a bool is no integer


def _kind(kind: type) -> Test:
    return lambda value: isinstance(value, kind)


def _list(test: Test, length: int | None = None) -> Test:
    def fits(value: Any) -> bool:
        is_list = isinstance(value, list | tuple) and length in (None, len(value))
        return is_list and all(map(test, value))

    return fits


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


# Fields, the test of their values, and what a value is expected to be.
_CHECKS = (
    ("scale shift", _is_number, "a finite number"),
    ("resolution image_channels format_version", _integer(1), "an integer of at least 1"),
    ("num_examples", _integer(0), "an integer of at least 0"),
    ("num_classes", _integer(1, MAX_CLASSES), f"an integer from 1 to {MAX_CLASSES}"),
    ("latent_shape", _list(_integer(1), 3), "three integers of at least 1"),
    ("class_counts", _list(_integer(0)), "a list of integers of at least 0"),
    ("skipped", _list(_kind(str)), "a list of names"),
    ("codec source weights crop tool_version", _kind(str), "a text"),
    ("flips", _kind(bool), "true or false"),
)


@dataclasses.dataclass(frozen=True)
class LatentSpec:
    """Metadata of a latent data set.

    Attributes:
        codec: name of the codec that made the latents.
        scale, shift: a latent is `(mean + std * eps) * scale + shift`.
        latent_shape: `(h, w, c)` of one latent.
        resolution: side of the square images, in pixels.
        image_channels: channels of the images.
        num_classes: labels lie in [0, num_classes).
        dtype: dtype of the stored moments, "float16" or "float32".
        num_examples: number of records; the writer fills it in.
        class_counts: number of records of each class, `[num_classes]`; the writer fills it in.
        format_version: version of the layout on disk.
        source: what was encoded, as the user named it. This and all fields below are empty if
            unknown.
        weights: fingerprint of the codec's weights.
        crop: how images were cropped to squares; "adm" is `crop.center_crop`.
        flips: whether a mirrored copy of every image is stored as a further record, so that an
            epoch visits both.
        skipped: images that were left out because they could not be used, each with the reason.
        tool_version: version of sra_jax that wrote the set; the writer fills it in.

    Raises:
        InputError: `dtype` is neither of the two, or a field is of another kind.
    """

    codec: str
    scale: float
    shift: float
    latent_shape: tuple[int, int, int]
    resolution: int
    image_channels: int
    num_classes: int
    dtype: str = "float16"
    num_examples: int = 0
    class_counts: tuple[int, ...] = ()
    format_version: int = FORMAT_VERSION
    source: str = ""
    weights: str = ""
    crop: str = ""
    flips: bool = False
    skipped: tuple[str, ...] = ()
    tool_version: str = ""

    def __post_init__(self):
        expect_one_of("dtype of stored moments", self.dtype, ("float16", "float32"))
        for names, fits, expected in _CHECKS:
            for name in names.split():
                if not fits(value := getattr(self, name)):
                    raise InputError(
                        f"{name} of the data is {reprlib.repr(value)}, expected {expected}; check "
                        "where they come from"
                    )
        for name in ("latent_shape", "class_counts", "skipped"):  # JSON returns them as lists
            object.__setattr__(self, name, tuple(getattr(self, name)))

    def fields(self) -> dict[str, FieldSpec]:
        """The arrays of a record by name: mean and standard deviation on channels, and a label."""
        moments = FieldSpec(self.moments_shape, self.dtype)
        return {"moments": moments, "labels": FieldSpec((), "int32")}

    @property
    def moments_shape(self) -> tuple[int, int, int]:
        """`(h, w, 2c)` of one record's moments."""
        height, width, channels = self.latent_shape
        return height, width, 2 * channels


def describe(spec: LatentSpec) -> str:
    """Describes in one line what the set holds and how balanced its classes are."""
    shape = "x".join(map(str, spec.latent_shape))
    counts = spec.class_counts
    parts = [
        f"{spec.num_examples:,} records of {shape} {spec.dtype} from {spec.codec}"
        f" (scale {spec.scale:g}, shift {spec.shift:g}) at {spec.resolution}px",
        f"classes: {spec.num_classes:,}, each of {min(counts):,} to {max(counts):,} records"
        f" (mean {spec.num_examples / spec.num_classes:,.1f})",
    ]
    if empty := counts.count(0):
        parts.append(f"empty classes: {empty:,}")
    if spec.flips:
        parts.append("each image also mirrored")
    if spec.skipped:
        parts.append(f"skipped images: {len(spec.skipped):,}")
    return "; ".join(parts)
