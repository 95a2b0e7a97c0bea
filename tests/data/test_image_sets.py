"""Sets of images come whole and in order, whatever they lie in; others are refused by name."""

import numpy as np
import pytest
from PIL import Image

from sra_jax.core.errors import InputError
from sra_jax.data.embedded import load_digits
from sra_jax.data.image_sets import batches, open_images


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (150, 6, 5, 3), np.uint8)


def read(path):
    opened = open_images(str(path))
    read = np.concatenate(list(opened.chunks(0, opened.count)))
    assert read.dtype == np.uint8
    assert (opened.count, opened.resolution) == (len(read), read.shape[1:3])
    for first, last in ((0, 64), (64, opened.count), (64, 65)):
        part = np.concatenate(list(opened.chunks(first, last)))
        np.testing.assert_array_equal(part, read[first:last])
    return read


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_npz_is_read_in_pieces(save, images, tmp_path):
    save(tmp_path / "colour.npz", arr_0=images, labels=np.zeros(150, object))  # not looked at
    np.testing.assert_array_equal(read(tmp_path / "colour.npz"), images)
    assert max(map(len, open_images(str(tmp_path / "colour.npz")).chunks(0, 150))) == 64
    save(tmp_path / "grey.npz", arr_0=images[..., :1])
    np.testing.assert_array_equal(read(tmp_path / "grey.npz"), images[..., [0, 0, 0]])


def test_a_folder_is_read_in_order(images, tmp_path):
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{number:06d}.png")
    np.testing.assert_array_equal(read(tmp_path), images)
    Image.fromarray(images[0, :4]).save(tmp_path / "000099.png")
    with pytest.raises(InputError, match=r"000099.png is 4x5, the first image in .* 6x5; crop"):
        read(tmp_path)
    (tmp_path / "000099.png").write_text("no picture")
    with pytest.raises(InputError, match=r"cannot use .*000099.png"):
        read(tmp_path)


def test_the_digits_are_a_set():
    np.testing.assert_array_equal(read("embedded:digits")[..., :1], load_digits()[0])


def test_batches_hold_what_the_chunks_hold(images):
    cuts = np.split(images, [1, 2, 70, 140])
    for size in (1, 8, 150, 151):
        joined = list(batches(cuts, size))
        assert {len(batch) for batch in joined[:-1]} <= {size} and 0 < len(joined[-1]) <= size
        np.testing.assert_array_equal(np.concatenate(joined), images)


def test_what_holds_no_images_is_refused(images, tmp_path):
    arrays = {
        "float.npz": (images.astype(np.float32), "float32"),
        "flat.npz": (images[0], r"\(6, 5, 3\), expected uint8 \[N, H, W, 3\]"),
        "alpha.npz": (np.zeros((3, 6, 5, 4), np.uint8), r"\(3, 6, 5, 4\)"),
        "one.npz": (images[:1], "holds 1 images, expected at least 2"),
        "objects.npz": (np.array([{}, {}]), "holds arr_0 object"),
        "fortran.npz": (np.asfortranarray(images), "in Fortran order"),
    }
    for name, (array, message) in arrays.items():
        np.savez(tmp_path / name, arr_0=array)
        with pytest.raises(InputError, match=rf"{name} .*{message}"):
            open_images(str(tmp_path / name))
    np.savez(tmp_path / "names.npz", images=images)
    (tmp_path / "text.npz").write_text("not arrays")
    for name, reason in {"names.npz": "no item", "text.npz": "of another kind"}.items():
        with pytest.raises(InputError, match=f"{name} is not an .npz with arr_0 .*{reason}"):
            open_images(str(tmp_path / name))
    with pytest.raises(InputError, match=r"no file none.npz; expected"):
        open_images("none.npz")
    (tmp_path / "few").mkdir()
    Image.fromarray(images[0]).save(tmp_path / "few" / "one.png")
    with pytest.raises(InputError, match="few holds 1 images"):
        open_images(str(tmp_path / "few"))


def test_a_damaged_file_is_refused(images, tmp_path):
    path = tmp_path / "damaged.npz"
    np.savez(path, arr_0=images)
    data = bytearray(path.read_bytes())
    data[5000] ^= 1  # a pixel, so that the checksum is wrong
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"damaged.npz is damaged"):
        read(path)
