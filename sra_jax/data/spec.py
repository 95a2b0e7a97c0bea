"""The metadata of a latent data set. Light to import: no data library is needed to know a shape."""

import dataclasses

from sra_jax.errors import expect_one_of

FORMAT_VERSION = 1


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

    Raises:
        InputError: `dtype` is neither of the two.
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

    def __post_init__(self):
        expect_one_of("dtype of stored moments", self.dtype, ("float16", "float32"))
        for field in ("latent_shape", "class_counts"):  # JSON returns them as lists
            object.__setattr__(self, field, tuple(getattr(self, field)))

    @property
    def moments_shape(self) -> tuple[int, int, int]:
        """`(h, w, 2c)` of one record's moments."""
        height, width, channels = self.latent_shape
        return height, width, 2 * channels
