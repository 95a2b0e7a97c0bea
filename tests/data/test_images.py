"""Images are read whole and in order from wherever they are; other things are refused by name."""

import numpy as np
import pytest
from PIL import Image

from sra_jax.core.errors import InputError
from sra_jax.data.embedded import load_digits
from sra_jax.data.images import batches, open_images, open_labelled_images


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
        "objects.npz": (np.array([{}, {}]), "holds images object"),
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
    with pytest.raises(InputError, match=r"no file or folder none.npz, expected"):
        open_images("none.npz")
    (tmp_path / "few").mkdir()
    Image.fromarray(images[0]).save(tmp_path / "few" / "one.png")
    with pytest.raises(InputError, match="few holds 1 images"):
        open_images(str(tmp_path / "few"))


@pytest.mark.parametrize("name", ["arr_0", "images"])
@pytest.mark.parametrize("channels", [1, 3])
def test_an_npz_of_images(tmp_path, name, channels):
    images = np.random.default_rng(0).integers(0, 256, (3, 5, 4, channels), np.uint8)
    np.savez(tmp_path / "set.npz", **{name: images}, labels=np.array([2, 0, 2]))
    opened = open_labelled_images(str(tmp_path / "set.npz"))
    assert opened.count == 3 and opened.num_classes == 3
    assert opened.name_of(2) == f"{tmp_path}/set.npz[2]"
    for index, label in enumerate([2, 0, 2]):
        image, found = opened.read(index)
        assert found == label
        np.testing.assert_array_equal(np.asarray(image), np.broadcast_to(images[index], (5, 4, 3)))


def test_an_npz_without_labels_is_one_class(tmp_path):
    np.savez(tmp_path / "set.npz", np.zeros((2, 4, 4, 3), np.uint8))
    opened = open_labelled_images(str(tmp_path / "set.npz"))
    assert opened.num_classes == 1 and [opened.read(i)[1] for i in (0, 1)] == [0, 0]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (
            {"pictures": np.zeros((2, 4, 4, 3), np.uint8)},
            "arr_0 or images .*not a file in",
        ),
        ({"arr_0": np.zeros((2, 4, 4, 3), np.float32)}, "holds images float32"),
        ({"arr_0": np.zeros((2, 4, 4, 4), np.uint8)}, r"holds images uint8 \(2, 4, 4, 4\)"),
        ({"arr_0": np.zeros((0, 4, 4, 3), np.uint8)}, r"holds images uint8 \(0, 4, 4, 3\)"),
        ({"arr_0": np.zeros((2, 4, 4, 3), np.uint8), "labels": np.zeros(3, int)}, "labels int64"),
        ({"arr_0": np.zeros((2, 4, 4, 3), np.uint8), "labels": np.array([0, -1])}, "labels int64"),
        ({"arr_0": np.zeros((1, 4, 4, 3), np.uint8), "labels": np.array([2**40])}, "below 1000000"),
        ({"arr_0": np.array([{}])}, r"set.npz is not an .npz .*\(it holds text or Python objects"),
    ],
)
def test_an_npz_of_something_else_is_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "set.npz", **arrays)
    with pytest.raises(InputError, match=message):
        open_labelled_images(str(tmp_path / "set.npz"))


def test_a_file_that_is_no_npz_is_refused(tmp_path):
    (tmp_path / "set.npz").write_text("no zip")
    for name in ("set.npz", "none.npz"):
        with pytest.raises(InputError, match=f"{name}"):
            open_labelled_images(str(tmp_path / name))


def test_an_npy_renamed_is_refused(tmp_path):
    with (tmp_path / "set.npz").open("wb") as file:
        np.save(file, np.zeros((2, 4, 4, 3), np.uint8))
    with pytest.raises(InputError, match=r"set\.npz .*a single array.*np\.savez"):
        open_labelled_images(str(tmp_path / "set.npz"))


def test_the_embedded_digits():
    opened = open_labelled_images("embedded:digits")
    assert opened.count == 1797 and opened.num_classes == 10 and opened.read(7)[1] == 7


def test_a_damaged_file_is_refused(images, tmp_path):
    path = tmp_path / "damaged.npz"
    np.savez(path, arr_0=images)
    data = bytearray(path.read_bytes())
    data[5000] ^= 1  # a pixel, so that the checksum is wrong
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"damaged.npz is damaged"):
        read(path)


def test_an_archive_of_an_unknown_version_is_refused(images, tmp_path):
    path = tmp_path / "newer.npz"
    np.savez(path, arr_0=images)
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x01\x02") + 6] = 109  # the version needed to extract the first file
    path.write_bytes(data)
    for opened in (open_images, open_labelled_images):
        with pytest.raises(InputError, match=r"newer.npz is not an .npz .*zip file version 10.9"):
            opened(str(path))
