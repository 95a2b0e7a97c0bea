"""Published models are told apart by their tensors; what is none of them is refused by name."""

import re
import runpy

import numpy as np
import pytest
from commands import REPOSITORY
from golden import random_state_dict
from hypothesis import given, settings
from hypothesis import strategies as st
from published import as_original_sit, with_projectors
from tiny import vary

from sra_jax.conditioning import ClassLabels
from sra_jax.config.recipes import imported_config
from sra_jax.config.schema import Experiment
from sra_jax.core.errors import InputError
from sra_jax.models import SIZES, DiTConfig, LatentLayout
from sra_jax.torch_weights.files import FileTensor, TorchCheckpoint
from sra_jax.torch_weights.imported import Choices, ImportedModel, latent_spec
from sra_jax.torch_weights.layout import torch_shapes
from sra_jax.torch_weights.recognise import clean_names, path_of, position_drift, recognise

SIT = DiTConfig(
    LatentLayout(8, 8, 4, patch=2), ClassLabels(5), outputs=1, width=24, depth=2, num_heads=3
)
DIT = vary(SIT, kind="dit", patch=4, depth=3)


def sit(seed=0, head=True):
    return random_state_dict(SIT, seed, head)


def dit(seed=0, head=True):
    return random_state_dict(DIT, seed, head)


def original_sit():
    return as_original_sit(sit(), SIT.layout.patch, SIT.layout.channels)


RECOGNISED = {
    "SRA's SiT": (sit(), {}, "sra", SIT, True),
    "SRA's DiT": (dit(), {}, "sra", DIT, True),
    "a SiT with data at 0": (sit(head=False), {}, "sra", SIT, False),
    "REPA's": (with_projectors(sit()), {}, "repa", SIT, False),
    "the original SiT": (original_sit(), {}, "sit", SIT, False),
    "the original DiT": (dit(head=False), {}, "dit", DIT, False),
    "a SiT whose variance moved": (dit(head=False), {"model": "SiT-B/4"}, "sit", None, False),
    "an original SiT without variance": (
        sit(head=False),
        {"image_size": 256, "path_type": "GVP"},
        "sit",
        SIT,
        False,
    ),
    "a new DiT": (original_sit(), {"model": "DiT-B/2"}, "dit", None, False),
}


@pytest.mark.parametrize("state, args, layout, config, head", RECOGNISED.values(), ids=RECOGNISED)
def test_recognises(state, args, layout, config, head):
    found = recognise(state, args, num_heads=3)
    assert (found.layout, found.head) == (layout, head)
    if config is not None:
        assert found.config == config


def test_the_asked_layout_goes_first():
    assert recognise(dit(head=False), {}, "sit", 3).config.outputs == 1
    assert recognise(sit(head=False), {}, "sit", 3).layout == "sit"
    assert recognise(original_sit(), {}, "dit", 3).config.outputs == 2
    with pytest.raises(InputError, match="'dit' predicts 4 channels from 4"):
        recognise(sit(), {}, "dit", 3)
    with pytest.raises(InputError, match="'repa' predicts 8 channels from 4"):
        recognise(dit(), {}, "repa", 3)
    with pytest.raises(InputError, match=r"unknown layout 'sot'.*did you mean 'sit'"):
        recognise(sit(), {}, "sot", 3)


def shapes_of(name, patch, kind="sit", num_classes=1000):
    """A published model without its numbers."""
    size = SIZES[name]._asdict()
    config = vary(SIT, kind=kind, side=32, patch=patch, num_classes=num_classes, **size)
    return config, {
        key: FileTensor(key, shape, "float32", lambda shape=shape: np.ones(shape, np.float32))
        for key, shape in torch_shapes(config, ("sra",)).items()
    }


@pytest.mark.parametrize("patch", [2, 4, 8])
@pytest.mark.parametrize("name", SIZES)
def test_published_sizes_are_known_by_their_shapes_alone(name, patch):
    config, shapes = shapes_of(name, patch)
    found = recognise(shapes, {})
    assert found.config == config
    assert f"SRA's SiT-{name}/{patch}" in found.describe()


def test_where_the_heads_come_from():
    _, shapes = shapes_of("XL", 2)
    for args, asked, heads, source in (
        ({"model": "SiT-XL/2"}, 12, 12, "--num_heads"),
        ({"model": "SiT-XL/2", "num_heads": "18"}, None, 18, "num_heads in the file"),
        ({"model": "SiT-XL/2"}, None, 16, "the file's model SiT-XL/2"),
        ({"model": "SiT-B/2"}, None, 16, "the published models of width 1152"),
        ({}, None, 16, "the published models of width 1152"),
    ):
        found = recognise(shapes, args, num_heads=asked)
        assert (found.config.num_heads, found.heads_from) == (heads, source)
    with pytest.raises(InputError, match=r"width 24 has.*give --num_heads"):
        recognise(sit(), {"model": "SiT-B/2"})
    with pytest.raises(InputError, match="24 must be divisible by the 5 heads"):
        recognise(sit(), {}, num_heads=5)


@pytest.mark.parametrize("kind, file", [("sit", "sit_sra"), ("dit", "dit_sra")])
@pytest.mark.parametrize("argument", ["XL/2", "B/4", "XL/2,res=512", "L/2,method=none"])
def test_the_config_is_that_of_the_config_files(kind, file, argument):
    """Where a published model has their shape."""
    name, *options = argument.split(",")
    config, _ = shapes_of(name.split("/")[0], int(name[-1]), kind)
    side = 64 if "res=512" in options else 32
    config = vary(config, side=side)
    ours = imported_config(config, "method=none" not in options, "linear", original=False)
    module = runpy.run_path(str(REPOSITORY / f"configs/{file}.py"))
    assert ours.to_dict() == module["get_config"](argument).to_dict()
    assert Experiment.from_dict(ours.to_dict()).trunk("cpu").config == config
    assert latent_spec(config).resolution == 8 * side


def test_names_are_unwrapped():
    names = ["module.pos_embed", "_orig_mod.module.x_embedder.proj.bias", "final_layer.linear.bias"]
    assert list(clean_names(names)) == [
        name.removeprefix("_orig_mod.").removeprefix("module.") for name in names
    ]
    with pytest.raises(InputError, match=r"tensors module.pos_embed and pos_embed are both"):
        clean_names(["module.pos_embed", "pos_embed"])


def test_older_names_of_repa_are_numbered_on():
    names = [f"blocks.{i}.attn.qkv.weight" for i in range(8)]
    names += [f"decoder_blocks.{i}.attn.qkv.weight" for i in range(20)]
    expected = [f"blocks.{i}.attn.qkv.weight" for i in range(28)]
    assert list(clean_names(names)) == expected


@pytest.mark.parametrize(
    "args, path",
    [({}, "linear"), ({"path_type": "cosine"}, "cosine"), ({"path_type": "GVP"}, "cosine")],
)
def test_the_path_is_what_the_arguments_say(args, path):
    assert path_of(args) == path


@pytest.mark.parametrize("args", [{"path_type": "VP"}, {"prediction": "noise"}, {"prediction": 1}])
def test_what_we_cannot_sample_is_refused(args):
    with pytest.raises(InputError, match=str(next(iter(args.values())))):
        path_of(args)


def replaced(**tensors):
    """A SiT with other shapes, dots in names written as two underscores."""
    shapes = {
        name.replace("__", "."): np.ones(shape, np.float32) for name, shape in tensors.items()
    }
    return sit() | shapes


def resnet():
    return {
        "conv1.weight": np.zeros((64, 3, 7, 7)),
        **{f"layer{i}.0.conv1.weight": np.zeros((64, 64, 3, 3)) for i in range(1, 5)},
        "fc.weight": np.zeros((1000, 512)),
    }


def vit():
    shapes = {"pos_embed": (1, 197, 384), "cls_token": (1, 1, 384), "head.weight": (1000, 384)}
    for i in range(2):
        shapes |= {f"blocks.{i}.attn.qkv.{leaf}": (2,) for leaf in ("weight", "bias")}
        shapes |= {f"blocks.{i}.norm1.{leaf}": (2,) for leaf in ("weight", "bias")}
    return {name: np.zeros(shape) for name, shape in shapes.items()}


REFUSED = {
    "qk norm": (
        sit() | {"blocks.0.attn.q_norm.weight": np.ones(8)},
        "normalises queries and keys (blocks.0.attn.q_norm.weight",
    ),
    "another model": (
        resnet(),
        "5 of which are missing (blocks.0.mlp.fc1.weight, final_layer.linear.weight, pos_embed, ",
        "found conv1.weight, fc.weight, layer1.0.conv1.weight, ",
    ),
    "a ViT": (vit(), "expected the tensors of SiT or DiT", "found blocks.0.attn.qkv.bias, "),
    "nearly REPA": (
        {k: v for k, v in with_projectors(sit()).items() if k != "pos_embed"},
        "missing (pos_embed)",
    ),
    "predicts 3": (
        replaced(final_layer__linear__weight=(12, 24)),
        "takes 4 channels and predicts 3; expected 4 (SiT) or 8 (DiT",
    ),
    "takes 3": (
        replaced(x_embedder__proj__weight=(24, 3, 2, 2)),
        "takes 3 channels and predicts 4; expected 3 (SiT) or 6 (DiT",
    ),
    "oblong patches": (
        replaced(x_embedder__proj__weight=(24, 4, 2, 3)),
        "x_embedder.proj.weight has shape (24, 4, 2, 3), expected [width, channels, patch, patch]",
    ),
    "oblong grid": (replaced(pos_embed=(1, 15, 24)), "(1, 15, 24)", "a square number"),
    "other MLPs": (replaced(blocks__0__mlp__fc1__weight=(72, 24)), "72 wide, expected 4 times"),
    "no label table": (
        replaced(y_embedder__embedding_table__weight=(6,)),
        "shape (6,), expected [classes + 1, width]",
    ),
    "a block less": (
        {k.replace("blocks.1.", "blocks.2."): v for k, v in sit().items()},
        "has 2 blocks, but none numbered 1",
    ),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_refuses(case):
    state, *messages = case
    with pytest.raises(InputError) as error:
        recognise(state, {}, num_heads=3)
    for message in messages:
        assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_table_without_the_null_class_is_refused():
    with pytest.raises(InputError, match="for each of the 6 classes and none for no class"):
        recognise(sit(), {"num_classes": 6}, num_heads=3)


def test_drift_is_the_largest_difference():
    _, shapes = shapes_of("S", 2)
    config = recognise(shapes, {}).config
    table = config.layout.position_table(config.width)[None].copy()
    assert position_drift(table, config) == 0
    table[0, 100, 7] += 0.25
    assert position_drift(table, config) == pytest.approx(0.25, abs=1e-6)


def checkpoint(state):
    tensors = {
        name: FileTensor(name, array.shape, "float32", lambda array=array: array)
        for name, array in state.items()
    }
    return TorchCheckpoint({"model": tensors}, {})


@st.composite
def mangled(draw):
    """A state dict with a few tensors dropped, renamed, reshaped, cut, doubled or added."""
    state = draw(st.sampled_from([sit, dit, original_sit, lambda: with_projectors(sit())]))()
    for _ in range(draw(st.integers(1, 4))):
        name = draw(st.sampled_from(sorted(state)))
        array = state.pop(name)
        match draw(
            st.sampled_from(["drop", "rename", "transpose", "cut", "double", "flat", "add"])
        ):
            case "rename":
                old, new = draw(
                    st.sampled_from([("blocks.0", "blocks.7"), ("weight", "bias"), ("", "module.")])
                )
                state[name.replace(old, new, 1)] = array
            case "transpose":
                state[name] = array.T
            case "cut":
                state[name] = array[: len(array) // 2]
            case "double":
                state[name] = np.concatenate([array, array])
            case "flat":
                state[name] = array.reshape(-1)
            case "add":
                state |= {name: array, f"{name}.more": array}
    return state


@settings(max_examples=50, deadline=None)
@given(mangled(), st.booleans())
def test_whatever_is_done_to_a_state_dict_it_converts_or_is_refused_in_one_line(state, allowed):
    try:
        model = ImportedModel(checkpoint(state), Choices(num_heads=3, allow_mismatch=allowed))
        params = model.read("model")
    except InputError as error:
        assert "\n" not in str(error)
        assert re.search(r"tensor|layout|channels|block|wide|divi|heads", str(error)), error
    else:
        assert params["trunk"]["blocks"]["mlp"]["fc1"]["kernel"].shape[1:] == (24, 96)
