import hashlib
import inspect
import json
import zlib
from functools import partial

import jax
import numpy as np
import pytest
from golden import DATA, relative_error
from jax.sharding import NamedSharding, PartitionSpec
from safetensors.numpy import save_file

from sra_jax.codecs import Codec, PixelCodec, SDVAECodec, codec_from_name, load_sd_vae
from sra_jax.codecs.sd_vae import AutoencoderKL, VAEConfig, decode_latents, encode_images
from sra_jax.codecs.sd_vae_weights import config_from_diffusers, params_from_diffusers
from sra_jax.core.errors import InputError

PARITY = 1e-5  # the contract is 1e-4
WEIGHTS = "diffusion_pytorch_model.safetensors"
ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
# The relatives of SD 3, a sixteenth as wide.
SMALL = {
    "_class_name": "AutoencoderKL",
    "_diffusers_version": "0.30.0",
    "act_fn": "silu",
    "block_out_channels": [8, 16, 32, 32],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "force_upcast": True,
    "in_channels": 3,
    "latent_channels": 16,
    "latents_mean": None,
    "latents_std": None,
    "layers_per_block": 2,
    "mid_block_add_attention": True,
    "norm_num_groups": 4,
    "out_channels": 3,
    "sample_size": 1024,
    "scaling_factor": 1.5305,
    "shift_factor": 0.0609,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "use_post_quant_conv": False,
    "use_quant_conv": False,
}


@pytest.fixture(scope="module")
def vae():
    """What diffusers computed, and the names and shapes of its tensors."""
    with np.load(DATA / "vae.npz", allow_pickle=False) as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def shapes(vae):
    """Shape of each tensor of the SD-VAE by its name, as diffusers has it."""
    sizes = [tuple(map(int, shape.split(","))) for shape in vae["shapes"]]
    return dict(zip(vae["keys"].tolist(), sizes, strict=True))


@pytest.fixture(scope="module")
def small_tensors(shapes):
    """Those of the small relative: 16 latent channels, no convolutions beside them."""
    sizes = {4: 16, 8: 32} | {n: n // 16 for n in (128, 256, 512)}
    return {
        name: draw_tensor(name, tuple(sizes.get(n, n) for n in shape))
        for name, shape in shapes.items()
        if "quant_conv" not in name
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory, small_tensors):
    """The small relative as diffusers would have saved it."""
    return write_vae(tmp_path_factory.mktemp("vae"), small_tensors, SMALL)


@pytest.fixture(scope="module")
def small(folder):
    return codec_from_name("sd_vae", vae=folder)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), np.uint8)


def draw_tensor(name, shape):
    """By the rule in the golden numbers' README."""
    a = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)
    if len(shape) > 1:
        return a * np.float32(np.sqrt(1 / np.prod(shape[1:])))
    return 0.1 * a + np.float32("norm" in name and name.endswith("weight"))


def write_vae(folder, tensors, fields):
    save_file(tensors, folder / WEIGHTS)
    (folder / "config.json").write_text(json.dumps(fields))
    return folder


def spell_as_before(tensors, convolutions):
    """The tensors under the names of the published files, the attention's weights as 1x1
    convolutions if asked."""
    older = {}
    for name, array in tensors.items():
        for new, old in ATTENTION.items():
            if f".{new}." in name:
                name = name.replace(new, old)
                if convolutions and array.ndim == 2:
                    array = array[:, :, None, None]
        older[name] = array
    return older


def test_agrees_with_diffusers(vae, shapes):
    config = VAEConfig()
    tensors = {name: draw_tensor(name, shape) for name, shape in shapes.items()}
    params = jax.device_put(params_from_diffusers(tensors, config))
    codec = SDVAECodec(config, params, fingerprint="")

    mean, std = np.split(codec.encode(vae["images"]), 2, axis=-1)
    assert relative_error(mean, np.moveaxis(vae["mean"], 1, -1)) < PARITY
    assert relative_error(std, np.moveaxis(vae["std"], 1, -1)) < PARITY

    latents = np.moveaxis(vae["latents"], 1, -1)
    decode = jax.jit(partial(AutoencoderKL(config).apply, method="decode"))
    decoded = np.moveaxis(vae["decoded"], 1, -1)
    assert relative_error(decode({"params": params}, latents), decoded) < PARITY
    expected = np.rint(np.clip((decoded + 1) * 127.5, 0, 255))
    assert np.abs(codec.decode(latents * config.scale) - expected).max() <= 1


@pytest.mark.parametrize("convolutions", [False, True])
def test_both_spellings_of_the_attention_load(small_tensors, convolutions):
    config = config_from_diffusers(SMALL)
    older = spell_as_before(small_tensors, convolutions)
    assert len(set(older) - set(small_tensors)) == 16
    jax.tree.map(
        np.testing.assert_array_equal,
        params_from_diffusers(older, config),
        params_from_diffusers(small_tensors, config),
    )


def test_a_relative_with_16_channels_is_a_config(small, folder, images):
    assert small.downsampling == 8
    assert (small.scale, small.shift) == (1.5305, pytest.approx(-0.0609 * 1.5305))
    assert small.fingerprint == hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    moments = small.encode(images)
    assert moments.shape == (8, 2, 2, 32) and moments.dtype == np.float32
    assert moments[..., 16:].min() > 0
    decoded = small.decode(moments[..., :16])
    assert decoded.shape == images.shape and decoded.dtype == np.uint8 and decoded.std() > 1


def test_decode_undoes_the_scale_and_shift_of_the_data_set(small, folder, images):
    mean = small.encode(images)[..., :16]
    other = codec_from_name("sd_vae", scale=0.5, shift=0.25, vae=folder)
    assert (other.scale, other.shift) == (0.5, 0.25)
    np.testing.assert_array_equal(
        other.decode(mean * 0.5 + 0.25), small.decode(mean * small.scale + small.shift)
    )


def test_a_vae_without_a_scaling_factor_has_that_of_stable_diffusion():
    fields = {k: v for k, v in SMALL.items() if k not in ("scaling_factor", "shift_factor")}
    config = config_from_diffusers(fields)
    assert (config.scale, config.shift) == (0.18215, 0)


def test_half_precision_files_become_float32(tmp_path, small, small_tensors):
    halves = {name: array.astype(np.float16) for name, array in small_tensors.items()}
    write_vae(tmp_path, halves, SMALL)
    half = load_sd_vae(tmp_path / WEIGHTS)
    rounded = jax.tree.map(
        lambda a: np.asarray(a).astype(np.float16).astype(np.float32), small.params
    )
    jax.tree.map(np.testing.assert_array_equal, half.params, rounded)
    assert {leaf.dtype for leaf in jax.tree.leaves(half.params)} == {np.dtype("float32")}
    assert half.fingerprint != small.fingerprint


def test_a_batch_may_be_split_over_devices(small, images):
    mesh = jax.make_mesh((8,), ("data",))
    whole = NamedSharding(mesh, PartitionSpec())
    split = NamedSharding(mesh, PartitionSpec("data"))
    params = jax.device_put(small.params, whole)

    def over_devices(function, batch):
        jitted = jax.jit(
            partial(function, small.config), in_shardings=(whole, split), out_shardings=split
        )
        return jitted(params, batch)

    moments = over_devices(encode_images, images)
    assert len(moments.sharding.device_set) == 8
    assert relative_error(moments, small.encode(images)) < PARITY
    latents = np.asarray(moments)[..., :16]
    difference = over_devices(decode_latents, latents) - small.decode(latents).astype(int)
    assert np.abs(difference).max() <= 1


def test_both_codecs_are_codecs(small):
    for codec in (PixelCodec(), small):
        assert all(hasattr(codec, name) for name in Codec.__annotations__)
        for method in ("encode", "decode"):
            assert inspect.signature(getattr(type(codec), method)) == inspect.signature(
                getattr(Codec, method)
            )


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ((1, 16, 24, 3), np.uint8, r"\(1, 16, 24, 3\), expected \[B, S, S, 3\].*multiple of 8"),
        ((1, 20, 20, 3), np.uint8, "multiple of 8"),
        ((1, 0, 0, 3), np.uint8, "multiple of 8"),
        ((1, 16, 16, 1), np.uint8, r"expected \[B, S, S, 3\]"),
        ((16, 16, 3), np.uint8, r"expected \[B, S, S, 3\]"),
        ((1, 16, 16, 3), np.float32, "float32, expected uint8"),
    ],
)
def test_images_that_do_not_fit_are_refused(small, shape, dtype, message):
    with pytest.raises(InputError, match=message):
        small.encode(np.zeros(shape, dtype))


def test_latents_of_another_vae_are_refused(small):
    with pytest.raises(InputError, match=r"\(1, 2, 2, 4\), this VAE expects \[B, s, s, 16\]"):
        small.decode(np.zeros((1, 2, 2, 4), np.float32))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"act_fn": "relu"}, "act_fn = 'relu', only 'silu' is supported"),
        ({"_class_name": "VQModel"}, "only 'AutoencoderKL'"),
        ({"down_block_types": ["AttnDownEncoderBlock2D"] * 4}, "down_block_types = .*Attn"),
        ({"mid_block_add_attention": False}, "mid_block_add_attention = False, only True"),
        ({"latents_mean": [0.5] * 16}, "latents_mean = "),
        ({"window": 7}, "unknown"),
        ({"layers_per_block": 0}, "layers_per_block is 0, expected an integer above 0"),
        ({"use_quant_conv": "no"}, "use_quant_conv is 'no', expected true or false"),
        ({"block_out_channels": 8}, "block_out_channels = 8, expected a list"),
        ({"block_out_channels": [8, 16, 32, 30]}, "multiples of the 4 groups"),
        ({"scaling_factor": None}, "scaling_factor = None, expected a number"),
        ({"scaling_factor": 0}, "scale 0.0 and shift .* must be finite, the scale not 0"),
    ],
)
def test_configs_that_are_not_supported_are_refused_by_name(changes, message):
    with pytest.raises(InputError, match=message) as caught:
        config_from_diffusers(SMALL | changes)
    assert "\n" not in str(caught.value)


def test_a_config_that_lacks_fields_is_refused():
    with pytest.raises(InputError, match="lacks in_channels, out_channels"):
        config_from_diffusers({})


NAME = "encoder.mid_block.attentions.0.to_q.weight"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({NAME: None}, rf"1 missing \({NAME}\)"),
        ({"logvar": np.zeros(1)}, r"1 left over \(logvar\)"),
        ({NAME.replace("to_q", "query"): np.zeros((32, 32))}, r"1 left over \(.*query"),
        ({NAME: np.zeros((32, 16))}, rf"{NAME} has shape \(32, 16\), expected \(32, 32\)"),
        ({"encoder.conv_in.weight": np.zeros((3, 3, 3, 8))}, r"expected \(8, 3, 3, 3\)"),
    ],
)
def test_tensors_that_do_not_fit_are_named(small_tensors, changes, message):
    tensors = {k: v for k, v in (small_tensors | changes).items() if v is not None}
    with pytest.raises(InputError, match=message) as caught:
        params_from_diffusers(tensors, config_from_diffusers(SMALL))
    assert "\n" not in str(caught.value)


def test_files_that_are_missing_or_damaged_are_named(tmp_path, folder):
    with pytest.raises(InputError, match=rf"fetch {WEIGHTS} and config.json of stabilityai/sd-vae"):
        codec_from_name("sd_vae", scale=0.18215, shift=0.0)
    with pytest.raises(InputError, match=f"no file {tmp_path / WEIGHTS}: fetch"):
        load_sd_vae(tmp_path)
    content = (folder / WEIGHTS).read_bytes()
    (tmp_path / WEIGHTS).write_bytes(content[:-100])
    with pytest.raises(InputError, match=r"no file .*config.json: fetch"):
        load_sd_vae(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(SMALL))
    with pytest.raises(InputError, match=r"safetensors is damaged \(.*\); fetch it again"):
        load_sd_vae(tmp_path)
    (tmp_path / "config.json").write_text("<html>")
    with pytest.raises(InputError, match=r"config.json is not JSON"):
        load_sd_vae(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(InputError, match=r"config.json holds no JSON object"):
        load_sd_vae(tmp_path)


def test_pixels_take_no_weights(folder):
    with pytest.raises(InputError, match="codec pixels has no weights, but --vae is"):
        codec_from_name("pixels", vae=folder)
    assert codec_from_name("pixels") == PixelCodec(scale=1.0, shift=0.0)
