import dataclasses
import json

import pytest

from sra_jax.data.spec import LatentSpec, describe
from sra_jax.errors import InputError

SPEC = LatentSpec(
    codec="sd_vae",
    scale=0.18215,
    shift=0.0,
    latent_shape=(32, 32, 4),
    resolution=256,
    image_channels=3,
    num_classes=3,
    num_examples=2400,
    class_counts=(1000, 1400, 0),
    flips=True,
    skipped=("a.png (unreadable)",),
)


def test_a_spec_survives_json():
    assert LatentSpec(**json.loads(json.dumps(dataclasses.asdict(SPEC)))) == SPEC


def test_the_description_says_what_the_set_holds_and_how_balanced_it_is():
    assert describe(SPEC) == (
        "2,400 records of 32x32x4 float16 from sd_vae (scale 0.18215, shift 0) at 256px; "
        "classes: 3, each of 0 to 1,400 records (mean 800.0); empty classes: 1; each image also "
        "mirrored; skipped images: 1"
    )
    plain = dataclasses.replace(SPEC, class_counts=(800, 800, 800), flips=False, skipped=())
    assert describe(plain).endswith("classes: 3, each of 800 to 800 records (mean 800.0)")


def test_an_unknown_dtype_is_refused():
    with pytest.raises(InputError, match=r"dtype of stored moments 'float61'.*did you mean"):
        dataclasses.replace(SPEC, dtype="float61")
