import dataclasses
import json

import pytest

from sra_jax.core.errors import InputError
from sra_jax.data.spec import LatentSpec, describe

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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_classes": 10**6 + 1}, "num_classes of the data is 1000001, expected an integer"),
        ({"num_classes": 2**40}, "expected an integer from 1 to 1000000"),
        ({"num_classes": 0}, "num_classes"),
        ({"num_classes": None}, "num_classes of the data is None"),
        ({"num_classes": True}, "num_classes"),
        ({"scale": "0.18"}, "scale of the data is '0.18', expected a finite number"),
        ({"shift": float("nan")}, "shift of the data is nan"),
        ({"latent_shape": 32}, "latent_shape of the data is 32, expected three integers"),
        ({"latent_shape": (32, 32)}, "latent_shape"),
        ({"latent_shape": (32, 32, 0)}, "latent_shape"),
        ({"latent_shape": (32, 32, 4.0)}, "latent_shape"),
        ({"format_version": "2"}, "format_version of the data is '2'"),
        ({"resolution": None}, "resolution"),
        ({"class_counts": 7}, "class_counts"),
        ({"skipped": "a.png"}, "skipped"),
        ({"codec": None}, "codec of the data is None, expected a text"),
        ({"flips": 1}, "flips of the data is 1, expected true or false"),
    ],
)
def test_fields_of_another_kind_are_refused_in_one_line(changes, message):
    with pytest.raises(InputError, match=message) as caught:
        dataclasses.replace(SPEC, **changes)
    assert "\n" not in str(caught.value)


def test_an_unknown_dtype_is_refused():
    with pytest.raises(InputError, match=r"dtype of stored moments 'float61'.*did you mean"):
        dataclasses.replace(SPEC, dtype="float61")
