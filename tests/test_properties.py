"""Whatever a user writes or a disk returns: a result, or an error of our own that says what to do.

Hypothesis makes the input; anything but a result or an InputError fails the test.
"""

import copy
import io
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from array_record.python import array_record_module
from etils import epath
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from tiny import pixel_spec

from sra_jax.conditioning.class_labels import choose_labels
from sra_jax.config.recipes import BEST_LAYOUTS, imagenet_config, parse_argument
from sra_jax.config.schema import Experiment
from sra_jax.core.errors import InputError
from sra_jax.data.images import open_images, open_labelled_images
from sra_jax.data.records import open_records, read_spec, write_latents
from sra_jax.evaluation.reference import open_reference
from sra_jax.jobs.sample import SampleRequest, _with_overrides
from sra_jax.processes import DDPM, Interpolant
from sra_jax.run import directory as workdirs
from sra_jax.sampling.part_store import PartStore
from sra_jax.sampling.solvers import SOLVERS, make_steps, parse_steps

sys.path.insert(0, str(Path(__file__).parents[1] / "configs"))
import digits

settings.register_profile(
    "repeatable",
    derandomize=True,
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("repeatable")

# Text as people mistype it, and as nobody would.
NUMBERS = st.one_of(
    st.integers(-(10**12), 10**12).map(str),
    st.floats(width=32).map(str),
    st.sampled_from(["", " ", "٣", "1_0", "0x1", "1e400", "-0", "+3", "nan", "inf", "9" * 5000]),
)
LISTS = st.lists(NUMBERS, max_size=4).map(",".join)
TEXTS = st.one_of(LISTS, st.text(max_size=20))
PARTS = ["S/2", "XL/2", "B/4", "res=256", "res=512", "recipe=release", "weight=0.5", "weight=nan"]
PARTS += ["method=sra", "method=none"]
ARGUMENTS = st.one_of(
    st.lists(st.one_of(st.sampled_from([*PARTS, "slice=v5e:4x4"]), TEXTS), max_size=4).map(
        ",".join
    ),
    TEXTS,
)


def result_of(function, *arguments, **named):
    """What the function returns; None where it raises InputError, in one line."""
    try:
        return function(*arguments, **named)
    except InputError as error:
        assert str(error) and len(str(error).splitlines()) == 1
        return None


@given(ARGUMENTS, st.sampled_from(["sit", "dit"]))
def test_config_arguments(argument, kind):
    config = result_of(imagenet_config, argument, kind)
    if config is not None:
        assert config.model.width in (384, 768, 1024, 1152)
        assert config.data.latent_shape[0] in (32, 64) and config.model.remat in (
            "none",
            *(remat for _, remat in BEST_LAYOUTS.values()),
        )
    result_of(digits.get_config, argument)
    _, chosen = result_of(parse_argument, argument, {"weight": ()}) or ("", {})
    assert all(isinstance(float(value), float) for value in chosen.values())


VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**40), 2**40),
        st.floats(),
        st.sampled_from(["", "sit", "none", "sde", "linear", "smooth_l1", "1,2"]),
        st.text(max_size=8),
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=4,
)


def paths(tree, path=()):
    """The path of every field and section."""
    for name, value in tree.items():
        yield (*path, name)
        if isinstance(value, dict):
            yield from paths(value, (*path, name))


def changed(tree, path, value):
    """A copy with another value at the path."""
    tree = copy.deepcopy(tree)
    section = tree
    for name in path[:-1]:
        section = section[name]
    section[path[-1]] = value
    return tree


CONFIGS = [digits.get_config(kind).to_dict() for kind in ("sit", "dit")]
NEW = ("method", "method_files")  # since version 0.1, whose configs had a section `sra`
OLD_CONFIG = {name: section for name, section in CONFIGS[0].items() if name not in NEW}
OLD_CONFIG |= CONFIGS[0]["method"]


@settings(max_examples=300)
@given(st.data())
def test_fields_of_a_config(data):
    config = data.draw(st.sampled_from(CONFIGS))
    path = data.draw(st.sampled_from(list(paths(config))))
    experiment = result_of(Experiment.from_dict, changed(config, path, data.draw(VALUES)))
    if experiment is not None:
        assert experiment.train.steps >= 1 and experiment.solver_steps()


@given(TEXTS, st.integers(1, 50), st.integers(1, 1000), st.integers(0, 2**32 - 1))
def test_label_lists(text, count, classes, seed):
    labels = result_of(choose_labels, text, count, classes, seed)
    if labels is not None:
        assert labels.shape == (count,) and labels.dtype == np.int32
        assert labels.min() >= 0 and labels.max() < classes
        if text not in ("random", "balanced"):
            assert labels[0] == int(text.split(",")[0])


@given(TEXTS)
def test_guidance_intervals(text):
    experiment = Experiment.from_dict(CONFIGS[0])
    request = SampleRequest("run", "out.npz", guidance_interval=text)
    guidance = result_of(lambda: _with_overrides(experiment, request).guidance())
    if guidance is not None:
        assert (guidance.low, guidance.high) == tuple(float(part) for part in text.split(","))
        assert 0 <= guidance.low <= guidance.high <= 1


@given(
    st.one_of(TEXTS, st.lists(st.integers(0, 400).map(str), min_size=1, max_size=9).map(",".join)),
    st.sampled_from(sorted(SOLVERS)),
)
def test_numbers_of_steps_and_respacing(text, solver):
    counts = result_of(parse_steps, text)
    assume(counts is not None and np.sum(counts) <= 2000)  # more take their time
    process = next(p for p in (Interpolant(), DDPM()) if solver in p.solvers)
    steps = result_of(make_steps, process, solver, counts)
    if steps is not None and isinstance(process, DDPM):
        assert len(steps) == np.sum(counts)


SPEC = pixel_spec(2, num_classes=10, dtype="float32")
RECORDS = 6


@pytest.fixture(scope="module")
def latents(tmp_path_factory):
    """A data set of six records."""
    path = tmp_path_factory.mktemp("latents") / "set"
    rng = np.random.default_rng(0)
    moments = rng.uniform(size=(RECORDS, 2, 2, 2)).astype(np.float32)
    write_latents(path, SPEC, [[(moments, np.arange(RECORDS))]])
    return path


def mangle(data, content: bytes) -> bytes:
    """The bytes with some flipped, cut off, repeated or replaced."""
    how = data.draw(st.sampled_from(["flip", "cut", "insert", "replace"]))
    at = data.draw(st.integers(0, max(len(content) - 1, 0)))
    if how == "flip":
        changed = bytearray(content)
        for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=4)):
            changed[place] ^= data.draw(st.integers(1, 255))
        return bytes(changed)
    if how == "cut":
        return content[:at]
    extra = data.draw(st.binary(max_size=64))
    return content[:at] + extra + (content[at:] if how == "insert" else b"")


def read_all(path):
    source = open_records(path)
    batch = source.read(range(len(source)))
    assert batch["moments"].shape == (RECORDS, *SPEC.moments_shape)
    assert ((batch["labels"] >= 0) & (batch["labels"] < SPEC.num_classes)).all()
    return batch


@settings(max_examples=150)
@given(st.data())
def test_damaged_files_of_a_data_set(latents, tmp_path_factory, data):
    path = tmp_path_factory.mktemp("mangled") / "set"
    shutil.copytree(latents, path)
    file = data.draw(st.sampled_from(sorted(p.name for p in path.iterdir())))
    (path / file).write_bytes(mangle(data, (path / file).read_bytes()))
    batch = result_of(read_all, path)
    if batch is not None and "array_record" in file:
        np.testing.assert_array_equal(batch["moments"], read_all(latents)["moments"])
    result_of(read_spec, path)
    shutil.rmtree(path)


@settings(max_examples=100)
@given(st.data())
def test_records_of_another_kind(latents, tmp_path_factory, data):
    """Whole for ArrayRecord, whose checksums are right; what they hold is not what it should be."""
    path = tmp_path_factory.mktemp("foreign") / "set"
    shutil.copytree(latents, path)
    (file,) = path.glob("*array_record*")
    reader = array_record_module.ArrayRecordReader(str(file))
    good = reader.read_all()
    writer = array_record_module.ArrayRecordWriter(str(file), "group_size:1,uncompressed")
    for record in good:
        is_bad = data.draw(st.booleans())
        writer.write(mangle(data, record) if is_bad else record)
    writer.close()
    result_of(read_all, path)
    shutil.rmtree(path)


ARRAYS = st.sampled_from(
    [
        np.zeros((3, 8, 8, 3), np.uint8),
        np.zeros((3, 8, 8, 1), np.uint8),
        np.zeros((3, 8, 8, 3), np.float32),
        np.zeros((0, 8, 8, 3), np.uint8),
        np.zeros((3, 8, 8), np.uint8),
        np.asfortranarray(np.arange(576, dtype=np.uint8).reshape(3, 8, 8, 3)),
        np.array([1, "x", None], object),
        np.zeros(3, np.int32),
        np.array(5),
        np.array(["a", "b", "c"]),
        np.full(3, -7),
        np.zeros(3, "datetime64[s]"),
        np.zeros((2048,)),
        np.full((2048, 2048), np.nan, np.float32),
        np.zeros(2, [("a", "f4"), ("b", "i8")]),
    ]
)
NAMES = st.sampled_from(["arr_0", "images", "labels", "mu", "sigma", "points", "resolution", "x"])


@settings(max_examples=120)
@given(st.data())
def test_npz_files(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("npz") / "file.npz"
    arrays = data.draw(st.dictionaries(NAMES, ARRAYS, max_size=3))
    content = io.BytesIO()
    np.savez(content, **arrays)
    content = content.getvalue()
    if data.draw(st.booleans()):
        content = mangle(data, content[:200_000])
    path.write_bytes(content)
    source = result_of(open_labelled_images, str(path))
    if source is not None:
        for index in range(min(source.count, 3)):
            result_of(source.read, index)
    images = result_of(open_images, str(path))
    if images is not None:
        result_of(lambda: [chunk.shape for chunk in images.chunks(0, images.count)])
    for metrics in (["fid"], ["fid", "sfid", "is", "pr"]):
        result_of(open_reference, str(path), metrics)
    path.unlink()


@settings(max_examples=60)
@given(st.data())
def test_parts_of_samples(tmp_path_factory, data):
    """A part is what was saved, or missing."""
    out = tmp_path_factory.mktemp("parts") / "out.npz"
    images = np.arange(48, dtype=np.uint8).reshape(3, 4, 4, 1)
    store = PartStore(out, {})
    store.save(0, images)
    path = out.with_name("out.npz.parts") / "000000.npy"
    content = path.read_bytes()
    path.write_bytes(mangle(data, content))
    if not store.missing(1):
        (found,) = store.images(3)
        assert found.dtype == np.uint8 and found.ndim == 4 and found.size == images.size


@settings(max_examples=100)
@given(st.data())
def test_the_config_of_a_workdir(tmp_path_factory, data):
    workdir = epath.Path(tmp_path_factory.mktemp("run"))
    saved = {
        "format_version": 2,
        "config": data.draw(st.sampled_from([CONFIGS[0], OLD_CONFIG])),
        "data": json.loads(json.dumps(SPEC.__dict__)),
        "data_fingerprint": "0",
        "code": {},
    }
    if data.draw(st.booleans()):
        value = data.draw(VALUES)
        text = json.dumps(changed(saved, data.draw(st.sampled_from(list(paths(saved)))), value))
        content = text.encode()
    else:
        content = mangle(data, json.dumps(saved).encode())
    (workdir / "config.json").write_bytes(content)
    found = result_of(workdirs.read, workdir)
    if found is not None:
        assert Experiment.from_dict(found.config, with_methods=False)
        assert all(isinstance(fields, dict) for fields in found.config["method"].values())
