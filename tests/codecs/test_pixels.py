import numpy as np
import pytest

from sra_jax.codecs import PixelCodec, codec_from_name
from sra_jax.core.errors import InputError

EVERY_VALUE = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)


def test_all_values_survive_the_round_trip():
    moments = PixelCodec().encode(EVERY_VALUE)
    mean, std = np.split(moments, 2, axis=-1)
    assert moments.shape == (1, 16, 16, 2) and moments.dtype == np.float32
    assert mean.min() == -1 and mean.max() == 1 and not std.any()
    np.testing.assert_array_equal(PixelCodec().decode(mean), EVERY_VALUE)


def test_decode_undoes_scale_and_shift():
    codec = codec_from_name("pixels", scale=0.5, shift=0.25)
    mean = codec.encode(EVERY_VALUE)[..., :1]
    np.testing.assert_array_equal(codec.decode(mean * 0.5 + 0.25), EVERY_VALUE)


def test_decode_clips_what_lies_outside():
    latents = np.array([-1.7, 0.0, 3.0], np.float32).reshape(1, 1, 3, 1)
    assert PixelCodec().decode(latents).ravel().tolist() == [0, 128, 255]


def test_channels_stay_apart():
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), np.uint8)
    moments = PixelCodec().encode(images)
    assert moments.shape == (2, 4, 4, 6)
    np.testing.assert_array_equal(PixelCodec().decode(moments[..., :3]), images)


def test_bad_input_is_named():
    with pytest.raises(InputError, match="float32, expected uint8"):
        PixelCodec().encode(EVERY_VALUE.astype(np.float32))
    with pytest.raises(InputError, match="did you mean 'pixels'"):
        codec_from_name("pixel", scale=1.0, shift=0.0)
