import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from PIL import Image

from sra_jax.core.errors import InputError
from sra_jax.data.image_sources import open_source
from sra_jax.data.loading import BadItemError


def paint(path, colour, size=(6, 4)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (colour,) * 3).save(path)


def read_all(source):
    """Colour of the first pixel, and the label, of every image."""
    items = [source.read(index) for index in range(len(source))]
    return [(image.getpixel((0, 0))[0], label) for image, label in items]


@pytest.fixture
def tree(tmp_path):
    """Three classes, made in another order than theirs, and files that are no images."""
    for name, colour in (
        ("n02/b.png", 20),
        ("n10/c.PNG", 30),
        ("n01/z.png", 11),
        ("n01/a.png", 10),
    ):
        paint(tmp_path / "train" / name, colour)
    paint(tmp_path / "train/n02/deeper/d.png", 21)
    (tmp_path / "train/n01/._a.png").write_bytes(b"what a Mac leaves")
    (tmp_path / "train/n02/notes.txt").write_text("no image")
    (tmp_path / "train/.cache").mkdir()
    (tmp_path / "train/README").write_text("no image")
    return tmp_path / "train"


def test_class_directories_in_sorted_order_are_the_labels(tree):
    source = open_source(str(tree))
    assert read_all(source) == [(10, 0), (11, 0), (20, 1), (21, 1), (30, 2)]
    assert source.num_classes == 3
    assert source.name(3) == str(tree / "n02/deeper/d.png")


def test_a_folder_without_classes_is_one_class(tmp_path):
    paint(tmp_path / "b.png", 2)
    paint(tmp_path / "a.png", 1)
    source = open_source(str(tmp_path))
    assert read_all(source) == [(1, 0), (2, 0)] and source.num_classes == 1


def test_a_changed_tree_has_another_identity(tree):
    identity = open_source(str(tree)).identity
    assert open_source(str(tree)).identity == identity
    paint(tree / "n10/new.png", 0)
    assert open_source(str(tree)).identity != identity


def test_trees_that_are_none_are_refused(tree, tmp_path):
    paint(tree / "loose.png", 0)
    with pytest.raises(InputError, match=r"both class directories and images \(loose\.png\)"):
        open_source(str(tree))
    (tree / "loose.png").unlink()
    (tree / "n03").mkdir()
    with pytest.raises(InputError, match="n03 holds no images"):
        open_source(str(tree))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty holds no images, expected .*png.*npy:FOLDER"):
        open_source(str(tmp_path / "empty"))
    with pytest.raises(InputError, match="no source '/nowhere', expected tfds:NAME"):
        open_source("/nowhere")
    with pytest.raises(InputError, match=f"{__file__} is a file of another kind, expected tfds:"):
        open_source(__file__)
    with pytest.raises(InputError, match=r"nowhere.npz as an .npz .*\(No such file or directory\)"):
        open_source("/nowhere.npz")
    with pytest.raises(InputError, match="--data_dir is of tfds:NAME"):
        open_source(str(tree), data_dir="somewhere")


@pytest.mark.parametrize("name", ["arr_0", "images"])
@pytest.mark.parametrize("channels", [1, 3])
def test_an_npz_of_images(tmp_path, name, channels):
    images = np.random.default_rng(0).integers(0, 256, (3, 5, 4, channels), np.uint8)
    np.savez(tmp_path / "set.npz", **{name: images}, labels=np.array([2, 0, 2]))
    source = open_source(str(tmp_path / "set.npz"))
    assert len(source) == 3 and source.num_classes == 3 and source.name(2) == "set.npz[2]"
    for index, label in enumerate([2, 0, 2]):
        image, found = source.read(index)
        assert found == label
        np.testing.assert_array_equal(np.asarray(image), np.broadcast_to(images[index], (5, 4, 3)))


def test_an_npz_without_labels_is_one_class(tmp_path):
    np.savez(tmp_path / "set.npz", np.zeros((2, 4, 4, 3), np.uint8))
    source = open_source(str(tmp_path / "set.npz"))
    assert source.num_classes == 1 and read_all(source) == [(0, 0), (0, 0)]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"pictures": np.zeros((2, 4, 4, 3), np.uint8)}, "holds pictures, expected images"),
        ({"arr_0": np.zeros((2, 4, 4, 3), np.float32)}, "holds float32 of shape"),
        ({"arr_0": np.zeros((2, 4, 4, 4), np.uint8)}, r"holds uint8 of shape \(2, 4, 4, 4\)"),
        ({"arr_0": np.zeros((0, 4, 4, 3), np.uint8)}, r"holds uint8 of shape \(0, 4, 4, 3\)"),
        ({"arr_0": np.zeros((2, 4, 4, 3), np.uint8), "labels": np.zeros(3, int)}, "holds labels"),
        ({"arr_0": np.zeros((2, 4, 4, 3), np.uint8), "labels": np.array([0, -1])}, "holds labels"),
        ({"arr_0": np.zeros((1, 4, 4, 3), np.uint8), "labels": np.array([2**40])}, "below 1000000"),
        ({"arr_0": np.array([{}])}, r"cannot read .*set.npz .*\(it holds text or Python objects"),
    ],
)
def test_an_npz_of_something_else_is_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "set.npz", **arrays)
    with pytest.raises(InputError, match=message):
        open_source(str(tmp_path / "set.npz"))


def test_a_file_that_is_no_npz_is_refused(tmp_path):
    (tmp_path / "set.npz").write_text("no zip")
    for name in ("set.npz", "none.npz"):
        with pytest.raises(InputError, match="cannot read"):
            open_source(str(tmp_path / name))


def test_an_npy_renamed_is_refused(tmp_path):
    with (tmp_path / "set.npz").open("wb") as file:
        np.save(file, np.zeros((2, 4, 4, 3), np.uint8))
    with pytest.raises(InputError, match=r"set\.npz holds a single array.*np\.savez"):
        open_source(str(tmp_path / "set.npz"))


def test_the_embedded_digits():
    source = open_source("embedded:digits")
    assert len(source) == 1797 and source.num_classes == 10 and source.read(7)[1] == 7


def write_tfds(folder, features, examples):
    """A prepared data set of two ArrayRecord files, `examples` in the first, one in the second."""
    folder.mkdir(parents=True)
    features = tfds.features.FeaturesDict(features)
    for shard, part in enumerate((examples[:-1], examples[-1:])):
        path = folder / f"{folder.parent.name}-train.array_record-{shard:05d}-of-00002"
        writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
        for example in part:
            writer.write(features.serialize_example(features.encode_example(example)))
        writer.close()
    split = tfds.core.SplitInfo(name="train", shard_lengths=[len(examples) - 1, 1], num_bytes=1)
    tfds.folder_dataset.write_metadata(
        data_dir=folder, features=features, split_infos=[split], check_data=False
    )


@pytest.fixture
def pictures(tmp_path):
    """A few files: grey, and one that is no image."""
    for colour in (1, 2, 3):
        paint(tmp_path / f"pictures/{colour}.png", colour)
    (tmp_path / "pictures/4.png").write_text("no image")
    return [(tmp_path / f"pictures/{colour}.png").read_bytes() for colour in (1, 2, 3, 4)]


# One name that TFDS has code for, and one that it knows from the files alone.
@pytest.mark.parametrize("name", ["imagenet2012", "shapes"])
def test_a_tfds_data_set_without_tensorflow(tmp_path, pictures, name):
    features = {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(num_classes=9)}
    examples = [{"image": image, "label": 3 * i} for i, image in enumerate(pictures[:3])]
    write_tfds(tmp_path / name / "5.1.0", features, examples)
    source = open_source(f"tfds:{name}", data_dir=str(tmp_path))
    assert read_all(source) == [(1, 0), (2, 3), (3, 6)]
    assert source.name(2) == f"{name}/5.1.0 train[2]"
    assert "tensorflow" not in sys.modules


def test_a_tfds_data_set_without_labels_is_one_class(tmp_path, pictures):
    examples = [{"image": image} for image in pictures]
    write_tfds(tmp_path / "set/1.0.0", {"image": tfds.features.Image()}, examples)
    source = open_source("tfds:set", data_dir=str(tmp_path))
    assert source.num_classes == 1 and source.read(0)[1] == 0
    with pytest.raises(BadItemError, match="unreadable"):
        source.read(3)


def test_a_truncated_tfds_file_makes_bad_items(tmp_path, pictures):
    examples = [{"image": image} for image in pictures[:3]]
    write_tfds(tmp_path / "set/1.0.0", {"image": tfds.features.Image()}, examples)
    path = tmp_path / "set/1.0.0/set-train.array_record-00001-of-00002"
    path.write_bytes(path.read_bytes()[:-1000])
    source = open_source("tfds:set", data_dir=str(tmp_path))
    assert source.read(1)[1] == 0
    with pytest.raises(BadItemError, match="damaged record"):
        source.read(2)


def test_tfds_data_sets_that_are_not_there_are_refused(tmp_path):
    for name in ("cifar10", "no_such_set"):
        message = f"cannot open tfds:{name} in .*array_record"
        with pytest.raises(InputError, match=message) as caught:
            open_source(f"tfds:{name}", data_dir=str(tmp_path))
        assert "\n" not in str(caught.value)
    features = {"sound": tfds.features.Text()}
    write_tfds(tmp_path / "noise/1.0.0", features, [{"sound": "a"}, {"sound": "b"}])
    with pytest.raises(InputError, match="tfds:noise has the features sound, expected an image"):
        open_source("tfds:noise", data_dir=str(tmp_path))
