"""The probe's features against a plain forward, on any mesh."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import ROUNDING, relative_error

from sra_jax.core.errors import InputError
from sra_jax.core.random import stream_key
from sra_jax.data.records import open_records, write_latents
from sra_jax.data.spec import LatentSpec
from sra_jax.distributed.mesh import MeshConfig, make_mesh
from sra_jax.models import DiT
from sra_jax.probing import features
from sra_jax.probing.features import FeatureExtractor, extract, place_params, select
from sra_jax.processes import DDPM, Interpolant

COUNT, SCALE, SHIFT, SEED = 21, 0.5, 0.25, 3
ALL = (1, 2, 3, 4)


@pytest.fixture(scope="module")
def source(tmp_path_factory, sit):
    """Random latents of the golden models' shape, with a posterior as wide as they are."""
    side, channels = sit.config.layout.height, sit.config.layout.channels
    moments = np.abs(np.random.default_rng(0).normal(size=(COUNT, side, side, 2 * channels)))
    spec = LatentSpec(
        codec="sd_vae",
        scale=SCALE,
        shift=SHIFT,
        latent_shape=(side, side, channels),
        resolution=8 * side,
        image_channels=3,
        num_classes=3,
        dtype="float32",
    )
    directory = tmp_path_factory.mktemp("latents") / "data"
    write_latents(directory, spec, [[(moments.astype(np.float32), np.arange(COUNT) % 3)]])
    return open_records(directory)


def extractor_of(golden, process):
    conditioning = golden.config.conditioning
    return FeatureExtractor(DiT(golden.config), process, conditioning, SCALE, SHIFT, SEED)


def pooled(extractor, params, images, blocks, time, mesh):
    """Features [K, N, D] and norms [K, N] of all images."""
    placed = place_params(params, extractor.trunk, mesh)
    batches = list(extract(extractor, placed, images, blocks, time, mesh))
    return [np.concatenate(parts, axis=1) for parts in zip(*batches, strict=True)]


def plain(model, process, params, source, numbers, t):
    """The model's own features of every block, image by image, as the README's snippet has them."""
    mean = np.split(source.read(list(numbers))["moments"], 2, axis=-1)[0]
    key = stream_key(SEED, "probe")
    noise = [jax.random.normal(jax.random.fold_in(key, n), mean.shape[1:]) for n in numbers]
    times = jnp.full(len(mean), t)
    x_t = process.corrupt(jnp.asarray(mean) * SCALE + SHIFT, jnp.stack(noise), times)
    null = jnp.full(len(mean), model.config.conditioning.num_classes)
    return model(params, x_t, times, null, taps="all").features


@pytest.mark.parametrize(
    ("kind", "process", "time", "t"),
    [("sit", Interpolant(), 0.3, 0.3), ("dit", DDPM(), 0.3, 300), ("dit", DDPM(), 1.0, 999)],
)
def test_features_are_those_of_a_plain_forward(request, source, kind, process, time, t):
    golden, model = request.getfixturevalue(kind), request.getfixturevalue(f"{kind}_model")
    params, numbers = golden.params("student")["trunk"], [17, 2, 9, 4]
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    extractor = extractor_of(golden, process)
    found, norms = pooled(extractor, params, select(source, numbers), ALL, time, mesh)
    for i, expected in enumerate(
        plain(model, process, params, source, numbers, t)[block] for block in ALL
    ):
        expected = np.asarray(expected, np.float64)
        assert relative_error(found[i], expected.mean(axis=1)) < ROUNDING
        assert relative_error(norms[i], np.linalg.norm(expected, axis=-1).mean(1)) < ROUNDING


@pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 2, 2)])
def test_features_do_not_depend_on_the_mesh(monkeypatch, sit, source, sizes):
    monkeypatch.setattr(features, "PER_DEVICE", 2)  # three batches, the last one filled up
    params, extractor = sit.params("student")["trunk"], extractor_of(sit, Interpolant())
    images = select(source, range(COUNT))
    one = pooled(extractor, params, images, ALL, 0.5, make_mesh(MeshConfig(), jax.devices()[:1]))
    many = pooled(extractor, params, images, ALL, 0.5, make_mesh(MeshConfig(*sizes)))
    for found, expected in zip(many, one, strict=True):
        assert found.shape == expected.shape and found.shape[:2] == (4, COUNT)
        assert relative_error(found, expected) < ROUNDING
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_an_image_looks_the_same_in_any_company(sit, source):
    params, mesh = sit.params("student")["trunk"], make_mesh(MeshConfig(), jax.devices()[:1])
    extractor = extractor_of(sit, Interpolant())
    whole, _ = pooled(extractor, params, select(source, range(COUNT)), ALL, 0.4, mesh)
    some, _ = pooled(extractor, params, select(source, [20, 3]), (2, 3), 0.4, mesh)
    assert relative_error(some, whole[1:3][:, [20, 3]]) < ROUNDING
    other = dataclasses.replace(extractor, seed=SEED + 1)
    noisier, _ = pooled(other, params, select(source, [20, 3]), (2, 3), 0.4, mesh)
    assert relative_error(noisier, some) > 1e-2


def test_a_selection_is_known_by_its_images(source):
    first = select(source, [4, 1, 8])
    np.testing.assert_array_equal(first.labels, [1, 1, 2])
    assert select(source, [4, 1, 8]).digest == first.digest
    assert len({select(source, n).digest for n in ([4, 1, 8], [1, 4, 8], [4, 1], [4, 1, 7])}) == 4


def test_a_model_that_does_not_divide_over_the_mesh_is_refused(sit):
    mesh = make_mesh(MeshConfig(data=1, fsdp=1, tensor=8))
    with pytest.raises(InputError, match=r"does not divide over mesh.tensor=8"):
        place_params(sit.params("student")["trunk"], DiT(sit.config), mesh)
