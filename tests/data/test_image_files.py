import sys

import pytest
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from PIL import Image

from sra_jax.core.errors import InputError
from sra_jax.data.images import open_labelled_images
from sra_jax.data.loading import BadItemError


def paint(path, colour, size=(6, 4)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (colour,) * 3).save(path)


def read_all(images):
    """Colour of the first pixel, and the label, of every image."""
    items = [images.read(index) for index in range(images.count)]
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
    images = open_labelled_images(str(tree))
    assert read_all(images) == [(10, 0), (11, 0), (20, 1), (21, 1), (30, 2)]
    assert images.num_classes == 3
    assert images.name_of(3) == str(tree / "n02/deeper/d.png")


def test_a_folder_without_classes_is_one_class(tmp_path):
    paint(tmp_path / "b.png", 2)
    paint(tmp_path / "a.png", 1)
    images = open_labelled_images(str(tmp_path))
    assert read_all(images) == [(1, 0), (2, 0)] and images.num_classes == 1


def test_a_changed_tree_has_another_identity(tree):
    identity = open_labelled_images(str(tree)).identity
    assert open_labelled_images(str(tree)).identity == identity
    paint(tree / "n10/new.png", 0)
    assert open_labelled_images(str(tree)).identity != identity


def test_trees_that_are_none_are_refused(tree, tmp_path):
    paint(tree / "loose.png", 0)
    with pytest.raises(InputError, match=r"both class directories and images \(loose\.png\)"):
        open_labelled_images(str(tree))
    (tree / "loose.png").unlink()
    (tree / "n03").mkdir()
    with pytest.raises(InputError, match="n03 holds no images"):
        open_labelled_images(str(tree))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty holds no images, expected .*png.*npy:FOLDER"):
        open_labelled_images(str(tmp_path / "empty"))
    for path in ("/nowhere", "/nowhere.npz"):
        with pytest.raises(InputError, match=f"no file or folder {path}, expected tfds:NAME"):
            open_labelled_images(path)
    with pytest.raises(InputError, match=rf"{__file__} is not an .npz with arr_0 or images \(it "):
        open_labelled_images(__file__)
    with pytest.raises(InputError, match="--data_dir is of tfds:NAME"):
        open_labelled_images(str(tree), data_dir="somewhere")


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
    images = open_labelled_images(f"tfds:{name}", data_dir=str(tmp_path))
    assert read_all(images) == [(1, 0), (2, 3), (3, 6)]
    assert images.name_of(2) == f"{name}/5.1.0 train[2]"
    assert "tensorflow" not in sys.modules


def test_a_tfds_data_set_without_labels_is_one_class(tmp_path, pictures):
    examples = [{"image": image} for image in pictures]
    write_tfds(tmp_path / "set/1.0.0", {"image": tfds.features.Image()}, examples)
    images = open_labelled_images("tfds:set", data_dir=str(tmp_path))
    assert images.num_classes == 1 and images.read(0)[1] == 0
    with pytest.raises(BadItemError, match="unreadable"):
        images.read(3)


def test_a_truncated_tfds_file_makes_bad_items(tmp_path, pictures):
    examples = [{"image": image} for image in pictures[:3]]
    write_tfds(tmp_path / "set/1.0.0", {"image": tfds.features.Image()}, examples)
    path = tmp_path / "set/1.0.0/set-train.array_record-00001-of-00002"
    path.write_bytes(path.read_bytes()[:-1000])
    images = open_labelled_images("tfds:set", data_dir=str(tmp_path))
    assert images.read(1)[1] == 0
    with pytest.raises(BadItemError, match="damaged record"):
        images.read(2)


def test_tfds_data_sets_that_are_not_there_are_refused(tmp_path):
    for name in ("cifar10", "no_such_set"):
        message = f"cannot open tfds:{name} in .*array_record"
        with pytest.raises(InputError, match=message) as caught:
            open_labelled_images(f"tfds:{name}", data_dir=str(tmp_path))
        assert "\n" not in str(caught.value)
    features = {"sound": tfds.features.Text()}
    write_tfds(tmp_path / "noise/1.0.0", features, [{"sound": "a"}, {"sound": "b"}])
    with pytest.raises(InputError, match="tfds:noise has the features sound, expected an image"):
        open_labelled_images("tfds:noise", data_dir=str(tmp_path))
