import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sra_jax.data.crop import center_crop, read_image
from sra_jax.data.loading import BadItemError

GOLDEN = Path(__file__).with_name("crop.npz")
RNG = np.random.default_rng(0)


@pytest.mark.parametrize("case", range(6))
def test_agrees_with_dit_pixel_for_pixel(case):
    with np.load(GOLDEN, allow_pickle=False) as golden:
        image, expected = golden[f"{case}/image"], golden[f"{case}/cropped_32"]
    np.testing.assert_array_equal(center_crop(Image.fromarray(image), 32), expected)


def grey(rows):
    """An image from a nested list of grey values."""
    return Image.fromarray(np.repeat(np.array(rows, np.uint8)[..., None], 3, axis=-1))


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        # Twice as large is halved: means of 2x2 pixels.
        ([[0, 4, 10, 10], [8, 4, 10, 10], [1, 1, 0, 100], [1, 1, 100, 0]], [[4, 10], [1, 50]]),
        # The right size is only cropped, and of three columns left over, one goes at the left.
        ([[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]], [[2, 3], [7, 8]]),
        ([[1, 6], [2, 7], [3, 8], [4, 9], [5, 10]], [[2, 7], [3, 8]]),
    ],
)
def test_cases_computed_by_hand(rows, expected):
    assert center_crop(grey(rows), 2)[..., 0].tolist() == expected


def test_halves_until_less_than_twice_as_large():
    """Constant 2x2 blocks of 2x2 blocks survive two halvings of box averages unmixed."""
    blocks = RNG.integers(0, 256, (8, 8, 3), np.uint8)
    large = Image.fromarray(blocks.repeat(4, axis=0).repeat(4, axis=1))
    np.testing.assert_array_equal(center_crop(large, 8), blocks)
    assert center_crop(large, 9).shape == (9, 9, 3)


def saved(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    file.seek(0)
    return file


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        ("1", "PNG"),
        ("L", "JPEG"),
        ("LA", "PNG"),
        ("P", "GIF"),
        ("RGBA", "WEBP"),
        ("CMYK", "JPEG"),
        ("YCbCr", "JPEG"),
    ],
)
def test_other_kinds_of_images_become_rgb(mode, kind):
    white = np.full((16, 16, 3), 255, np.uint8)
    image = read_image(saved(Image.fromarray(white).convert(mode), kind))
    assert image.mode == "RGB"
    np.testing.assert_allclose(np.asarray(image), white, atol=2)


def make_sixteen_bit_png(colour):
    """One pixel of three 16-bit channels, which Pillow does not write."""
    header = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
    pixel = zlib.compress(struct.pack(">B3H", 0, *colour))
    png = b"\x89PNG\r\n\x1a\n"
    for kind, data in ((b"IHDR", header), (b"IDAT", pixel), (b"IEND", b"")):
        png += struct.pack(">I", len(data)) + kind + data
        png += struct.pack(">I", zlib.crc32(kind + data))
    return io.BytesIO(png)


def test_colours_of_sixteen_bits_keep_the_upper_eight():
    image = read_image(make_sixteen_bit_png((0x12FF, 0x3400, 0x56AB)))
    assert image.getpixel((0, 0)) == (0x12, 0x34, 0x56)


def animation(kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue")]
    return saved(frames[0], kind, save_all=True, append_images=frames[1:])


def cut(file, share):
    data = file.read()
    return io.BytesIO(data[: int(len(data) * share)])


NOISE = Image.fromarray(RNG.integers(0, 256, (64, 64, 3), np.uint8))


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (lambda: animation("GIF"), "animated, with 3 frames"),
        (lambda: animation("PNG"), "animated, with 3 frames"),
        (lambda: animation("WEBP"), "animated, with 3 frames"),
        (lambda: saved(Image.new("I;16", (8, 8), 1000), "PNG"), "grey of more than 8 bits"),
        (lambda: saved(Image.new("F", (8, 8), 0.5), "TIFF"), "grey of more than 8 bits"),
        (lambda: cut(saved(NOISE, "JPEG"), 0.5), "unreadable: .*truncated"),
        (lambda: cut(saved(NOISE, "PNG"), 0.5), "unreadable: "),
        (lambda: cut(saved(NOISE, "WEBP"), 0.5), "unreadable: "),
        (lambda: io.BytesIO(b""), "unreadable: cannot identify"),
        (lambda: io.BytesIO(b"no image at all"), "unreadable: cannot identify"),
        (lambda: "/nowhere/at/all.png", "unreadable: .*No such file"),
    ],
)
def test_what_cannot_be_used_says_why_in_one_line(file, message):
    with pytest.raises(BadItemError, match=message) as caught:
        read_image(file())
    assert "\n" not in str(caught.value)
