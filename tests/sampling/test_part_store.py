"""Parts survive a kill, and nothing else passes for them."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sra_jax.codecs import PixelCodec
from sra_jax.core.errors import InputError, RunError
from sra_jax.core.files import writable_directory, writable_file
from sra_jax.jobs.sample import SampleRequest, _labels
from sra_jax.sampling.images import ImageSampler
from sra_jax.sampling.part_store import PartStore
from sra_jax.sampling.solvers import parse_steps

REQUEST = {"num": 10, "seed": 0}
CHUNK = 4


def make_images(number):
    return np.random.default_rng(number).integers(0, 256, (CHUNK, 2, 2, 1), np.uint8)


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out.npz"


def refusal(kind, message, call, *arguments):
    with pytest.raises(kind, match=message) as error:
        call(*arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("size", [0, 5, 40, 130, 143, 145])
def test_a_part_of_another_size_is_sampled_again(out, size):
    store = PartStore(out, REQUEST)
    for number in range(3):
        store.save(number, make_images(number))
    assert store.missing(4) == [3]
    path = out.with_name("out.npz.parts") / "000001.npy"
    assert path.stat().st_size == 144
    path.write_bytes(path.read_bytes().ljust(size, b"\0")[:size])
    assert store.missing(3) == [1]
    store.save(1, make_images(1))
    assert store.missing(3) == []
    store.merge(np.arange(10))
    assert [path.name for path in out.parent.iterdir()] == ["out.npz"]
    with np.load(out) as arrays:
        images = np.concatenate([make_images(number) for number in range(3)])[:10]
        np.testing.assert_array_equal(arrays["arr_0"], images)
        np.testing.assert_array_equal(arrays["labels"], np.arange(10))


def test_a_part_of_another_form_is_sampled_again(out):
    store = PartStore(out, REQUEST)
    store.save(0, make_images(0).astype(np.float32))
    store.save(1, make_images(1)[0])
    assert store.missing(2) == [0, 1]


def test_one_process_at_a_time_samples(out):
    store = PartStore(out, REQUEST)
    refusal(InputError, "samples into .*out.npz.parts; wait", PartStore, out, REQUEST)
    PartStore(out, REQUEST, alone=False)  # one of those that sample together
    store.save(0, make_images(0))
    del store  # as the end of a process does
    assert PartStore(out, REQUEST).missing(2) == [1]


def test_parts_of_another_request_are_refused(out):
    PartStore(out, REQUEST)
    for _ in range(2):  # a refusal leaves no lock behind
        other = REQUEST | {"seed": 1}
        refusal(InputError, r"request \(seed was 0, is 1\); choose", PartStore, out, other)
    PartStore(out, REQUEST)


def test_finished_images_are_replaced_by_the_same_request_alone(out):
    for _ in range(2):
        store = PartStore(out, REQUEST)
        store.save(0, make_images(0))
        store.merge(np.arange(4))
    before = out.read_bytes()
    assert json.loads(np.load(out)["request.json"]) == REQUEST
    for change, told in (({"seed": 1}, "seed was 0, is 1"), ({"num": 4}, "num was 10, is 4")):
        refusal(
            InputError,
            f"out.npz does not belong to this request .*{told}",
            PartStore,
            out,
            REQUEST | change,
        )
    np.savez(out, arr_0=make_images(0))  # somebody else's
    refusal(
        InputError, "does not belong to this request; choose another --out", PartStore, out, REQUEST
    )
    out.write_bytes(before[:-9])
    refusal(InputError, "or remove it", PartStore, out, REQUEST)
    assert [path.name for path in out.parent.iterdir()] == ["out.npz"]


def test_a_file_in_the_way_of_parts_is_refused(out):
    out.with_name("out.npz.parts").touch()
    refusal(InputError, "cannot keep parts in .*; remove it", PartStore, out, REQUEST)


def test_places_to_write_to(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder.npz").mkdir()
    for path, message in (
        ("gs://bucket/x.npz", "copy it there afterwards"),
        ("x.png", "'x.png' does not end in .npz"),
        ("", "'' does not end in .npz"),
        (f"{tmp_path}/folder.npz", "is a directory"),
        (f"{tmp_path}/file/x.npz", "cannot write .*file/x.npz"),
        (f"{tmp_path}/{'x' * 300}.npz", "cannot write .*too long"),
    ):
        refusal(InputError, message, writable_file, path, ".npz")
    for path, message in (("", "empty"), ("gs://x", "copy"), (f"{tmp_path}/file", "cannot write")):
        refusal(InputError, message, writable_directory, path)
    assert writable_file(f"{tmp_path}/a/x.npz", ".npz") == tmp_path / "a" / "x.npz"
    assert writable_directory(f"{tmp_path}/a/b") == tmp_path / "a" / "b"
    assert [path.name for path in (tmp_path / "a").rglob("*")] == ["b"]


def test_what_is_too_much_is_refused():
    request = SampleRequest("run", "out.npz", num=10**8 + 1)
    refusal(InputError, "num is 100000001, expected at most", _labels, request, 10)
    assert parse_steps("100000") == 100_000
    refusal(InputError, "steps is 100001, expected at most 100000", parse_steps, "100001")


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_latents_that_are_no_numbers_are_refused(wrong):
    def sampler(params, seed, indices, labels):
        return jnp.zeros((len(indices), 4, 4, 1)) + params[labels, None, None, None]

    image_sampler = ImageSampler(sampler, PixelCodec(), np.array([0, 0, 1], np.int32), chunk=2)
    sampled = image_sampler.images(jnp.array([0.5, wrong]), [0, 1], jax.devices()[:1])
    number, images = next(sampled)
    assert (number, images.shape) == (0, (2, 4, 4, 1)) and (images == 191).all()
    refusal(RunError, "chunk 1 are not finite; lower the guidance", next, sampled)
