"""An image is a function of the seed, its index and its label, however many are drawn with it."""

import jax
import numpy as np
import pytest
from PIL import Image
from tiny import TINY, vary

from sra_jax.models import DiT
from sra_jax.processes import DDPM, Interpolant
from sra_jax.sampling.grid import image_grid, save_grid
from sra_jax.sampling.guidance import Guidance
from sra_jax.sampling.sampler import make_sampler, sample_chunks
from sra_jax.sampling.solvers import make_steps

LABELS = np.array([3, 1, 4, 1, 0, 2, 2, 3, 0, 4, 1], np.int32)


@pytest.fixture(scope="module", params=["sit", "dit"])
def drawn(request):
    """(labels, seed, chunk, number of devices) -> latents, by a random model of either process."""
    config = vary(TINY, kind=request.param, depth=2, num_classes=5)
    trunk = DiT(config)
    params = jax.jit(trunk.init)(jax.random.key(0))
    # As initialised, a transformer predicts zeros whatever it sees.
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noise = [0.2 * jax.random.normal(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=True)]
    params = jax.tree.unflatten(structure, [a + b for a, b in zip(leaves, noise, strict=True)])
    process, solver = {"sit": (Interpolant(), "sde"), "dit": (DDPM(), "ddpm")}[request.param]
    guidance = Guidance(1.5, 0.0, 0.7)
    steps = make_steps(process, solver, 5)
    sampler = make_sampler(trunk, process, config.conditioning, steps, guidance)

    def draw(labels, seed, chunk, devices=1, wanted=None):
        if wanted is None:
            wanted = range(-(-len(labels) // chunk))
        devices = jax.devices()[:devices]
        chunks = list(sample_chunks(sampler, params, labels, seed, chunk, wanted, devices))
        assert [number for number, _ in chunks] == list(wanted)
        assert all(latents.shape == (chunk, 8, 8, 2) for _, latents in chunks)
        return np.concatenate([np.asarray(latents) for _, latents in chunks])[: len(labels)]

    return draw


def assert_close(images, expected):
    """Programs for other chunks or devices may round otherwise: a few float32 units a step."""
    scale = np.abs(expected).max()
    np.testing.assert_allclose(images / scale, expected / scale, rtol=0, atol=3e-6)


def test_an_image_depends_on_seed_index_and_label_alone(drawn):
    images = drawn(LABELS, 7, 4)
    assert images.shape == (11, 8, 8, 2) and images.dtype == np.float32
    assert np.isfinite(images).all() and images.std() > 0.1

    np.testing.assert_array_equal(drawn(LABELS, 7, 4), images)
    for count in (1, 4, 6):  # a shorter request is the longer one's beginning
        np.testing.assert_array_equal(drawn(LABELS[:count], 7, 4), images[:count])
    others = LABELS.copy()
    others[6:] = (others[6:] + 1) % 5
    changed = drawn(others, 7, 4)
    np.testing.assert_array_equal(changed[:6], images[:6])
    assert all((changed[i] != images[i]).any() for i in range(6, 11))  # the labels do matter

    for chunk in (1, 11):
        assert_close(drawn(LABELS, 7, chunk), images)


def test_seeds_and_indices_have_their_own_noise(drawn):
    same = np.zeros(4, np.int32)
    images = np.concatenate([drawn(same, seed, 4) for seed in (0, 1, 2**32 - 1)])
    flat = images.reshape(len(images), -1)
    distances = np.linalg.norm(flat[:, None] - flat[None], axis=-1)
    assert (
        distances[~np.eye(len(flat), dtype=bool)].min() > 0.1 * np.linalg.norm(flat, axis=1).max()
    )


def test_chunks_are_the_same_on_any_devices_and_in_any_selection(drawn):
    images = drawn(LABELS, 7, 2)
    on_four = drawn(LABELS, 7, 2, devices=4)  # which do not divide the six chunks
    assert_close(on_four, images)
    some = drawn(LABELS[:4], 7, 2, devices=4, wanted=[0, 1])
    np.testing.assert_array_equal(some, on_four[:4])
    last = drawn(LABELS, 7, 2, wanted=[4, 1])  # as after an interruption
    np.testing.assert_array_equal(last, np.concatenate([images[8:10], images[2:4]]))


def expected_grid(images: np.ndarray, enlarge: int) -> np.ndarray:
    """Pixel by pixel: every pixel a square, a white border of two between and around the images."""
    count, height, width, channels = images.shape
    columns, rows = min(count, 10), (count + 9) // 10
    down, across = height * enlarge + 2, width * enlarge + 2
    grid = np.full((rows * down + 2, columns * across + 2, 3), 255, np.uint8)
    for i in range(count):
        for y in range(height * enlarge):
            for x in range(width * enlarge):
                colour = images[i, y // enlarge, x // enlarge]
                place = i // 10 * down + 2 + y, i % 10 * across + 2 + x
                grid[place] = colour if channels == 3 else colour[0]
    return grid


@pytest.mark.parametrize(
    "count, side, channels, enlarge, size",
    [
        (12, 8, 1, 6, (102, 502)),
        (3, 24, 3, 2, (52, 152)),
        (1, 64, 3, 1, (68, 68)),
        (11, 30, 1, 1, (66, 322)),
    ],
)
def test_a_grid_has_ten_columns_on_white(tmp_path, count, side, channels, enlarge, size):
    images = np.random.default_rng(0).integers(0, 256, (count, side, side, channels), np.uint8)
    expected = expected_grid(images, enlarge)
    assert expected.shape == (*size, 3)
    np.testing.assert_array_equal(image_grid(images), expected)
    save_grid(tmp_path / "grid.png", images)
    picture = Image.open(tmp_path / "grid.png")
    assert (picture.format, picture.mode) == ("PNG", "RGB")
    np.testing.assert_array_equal(np.asarray(picture), expected)


def test_a_grid_ends_after_a_hundred():
    images = np.random.default_rng(0).integers(0, 256, (130, 48, 48, 1), np.uint8)
    assert image_grid(images).shape == (502, 502, 3)
    np.testing.assert_array_equal(image_grid(images), image_grid(images[:100]))
