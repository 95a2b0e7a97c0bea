"""The metadata of a latent data set. Light to import: no data library is needed to know a shape."""

import dataclasses
import math
import reprlib
from numbers import Real
from typing import Any

from sra_jax.core.errors import InputError, expect_one_of

FORMAT_VERSION = 2  # 1 lacks the fields from `source` on; both are read
MAX_CLASSES = 10**6  # every class is counted in memory, and one wrong label would ask for billions


@dataclasses.dataclass(frozen=True)
class LatentSpec:
    """What a latent data set holds; its metadata.

    Attributes:
        codec: name of the codec that made the latents.
        scale, shift: a latent is `(mean + std * eps) * scale + shift`.
        latent_shape: `(h, w, c)` of one latent.
        resolution: side of the square images, in pixels.
        image_channels: channels of the images.
        num_classes: labels lie in [0, num_classes).
        dtype: of the stored moments, "float16" or "float32".
        num_examples: records in the set; the writer fills it in.
        class_counts: records of each class, `num_classes` of them; the writer fills it in.
        format_version: of the layout on disk.
        source: what was encoded, as the user named it; like all that follows, empty if unknown.
        weights: fingerprint of the codec's weights.
        crop: how images became squares; "adm" is that of `crop.center_crop`.
        flips: whether every image is there twice, the second time mirrored, as a record of its own.
            A reader then has nothing to choose: an epoch visits both.
        skipped: images left out because they could not be used, each with the reason.
        tool_version: of sra_jax, when it wrote the set; the writer fills it in.

    Raises:
        InputError: `dtype` is neither of the two, or a field is not of its kind.
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
        self._check_fields()
        for field in ("latent_shape", "class_counts", "skipped"):  # JSON returns them as lists
            object.__setattr__(self, field, tuple(getattr(self, field)))

    def _check_fields(self) -> None:
        for name in ("scale", "shift"):
            value = getattr(self, name)
            fits = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
            self._expect(fits, name, "a finite number")
        for name in ("resolution", "image_channels", "format_version"):
            self._expect(_is_integer(getattr(self, name), 1), name, "an integer of at least 1")
        self._expect(_is_integer(self.num_examples, 0), "num_examples", "an integer of at least 0")
        fits = _is_integer(self.num_classes, 1) and self.num_classes <= MAX_CLASSES
        self._expect(fits, "num_classes", f"an integer from 1 to {MAX_CLASSES}")
        fits = _is_list(self.latent_shape) and len(self.latent_shape) == 3
        fits = fits and all(_is_integer(side, 1) for side in self.latent_shape)
        self._expect(fits, "latent_shape", "three integers of at least 1")
        fits = _is_list(self.class_counts) and all(_is_integer(n, 0) for n in self.class_counts)
        self._expect(fits, "class_counts", "a list of integers of at least 0")
        fits = _is_list(self.skipped) and all(isinstance(name, str) for name in self.skipped)
        self._expect(fits, "skipped", "a list of names")
        for name in ("codec", "source", "weights", "crop", "tool_version"):
            self._expect(isinstance(getattr(self, name), str), name, "a text")
        self._expect(isinstance(self.flips, bool), "flips", "true or false")

    def _expect(self, fits: bool, name: str, expected: str) -> None:
        if not fits:
            value = reprlib.repr(getattr(self, name))
            raise InputError(
                f"{name} of the data is {value}, expected {expected}; check where they come from"
            )

    @property
    def moments_shape(self) -> tuple[int, int, int]:
        """`(h, w, 2c)` of one record's moments."""
        height, width, channels = self.latent_shape
        return height, width, 2 * channels


def _is_integer(value: Any, lowest: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= lowest


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def describe(spec: LatentSpec) -> str:
    """One line for a log: what the set holds, and how evenly over the classes."""
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
