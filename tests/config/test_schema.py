"""Config files become the experiments that the papers prescribe, or are refused by name."""

import dataclasses
import itertools
import json
import math

import jax.numpy as jnp
import pytest
from shipped import (
    IMAGENET_IMAGES,
    STEPS_PER_EPOCH,
    assert_refused,
    load,
    method_of,
    override,
    weight_at,
)
from tiny import OUTPUTS

from sra_jax.config.schema import Experiment
from sra_jax.data import shapes
from sra_jax.data.embedded import EMBEDDED

# The published models and recipes, written out a second time: depth, width, heads; then the blocks.
SIZES = {"S": (12, 384, 6), "B": (12, 768, 12), "L": (24, 1024, 16), "XL": (28, 1152, 16)}
BLOCKS = {
    "sit": {"S": (3, 8), "B": (3, 8), "L": (6, 16), "XL": (8, 20)},
    "dit": {"S": (3, 7), "B": (3, 7), "L": (6, 14), "XL": (8, 16)},
}
# (distance, weight of SiT, weight of DiT)
RECIPES = {
    "paper": ("smooth_l1", 0.2, 0.2),
    "release": ("smooth_l1", 0.2, 0.04),
    "cosine": ("cosine", 0.5, 0.5),
}
OPTIMIZER = {
    "learning_rate": 1e-4,
    "b1": 0.9,
    "b2": 0.999,
    "eps": 1e-8,
    "weight_decay": 0.0,
    "clip_norm": 1.0,
}


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("resolution", [256, 512])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["sit", "dit"])
def test_imagenet_configs_hold_the_designs_constants(kind, size, resolution, recipe):
    distance, *weights = RECIPES[recipe]
    depth, width, heads = SIZES[size]
    student, teacher = BLOCKS[kind][size]
    side = resolution // 8
    for patch, plain in itertools.product((2, 4, 8), ("", ",method=none", ",weight=0")):
        argument = f"{size}/{patch},res={resolution},recipe={recipe}{plain}"
        experiment = Experiment.from_dict(load(f"{kind}_sra", argument))

        model = experiment.trunk("tpu").config
        assert (model.outputs, model.dtype) == (OUTPUTS[kind], "bfloat16")
        assert (model.depth, model.width, model.num_heads) == (depth, width, heads)
        assert (model.layout.patch, *model.layout.shape) == (patch, side, side, 4)
        assert (model.conditioning.num_classes, model.mlp_ratio) == (1000, 4)
        assert experiment.trunk("cpu").config.dtype == "float32"

        assert dataclasses.asdict(experiment.optimizer).items() >= OPTIMIZER.items()
        train = experiment.train
        assert (train.batch_size, train.label_dropout, train.ema_decay) == (256, 0.1, 0.9999)
        assert (train.steps, train.microbatches) == (4_000_000, 1)
        assert experiment.data.examples_per_epoch == IMAGENET_IMAGES

        if plain:
            assert experiment.methods == () and experiment.group == 1
            continue
        method = method_of(experiment)
        fields = {f.name: getattr(method, f.name) for f in dataclasses.fields(method)}
        del fields["weight"]
        assert fields == {
            "student_block": student,
            "teacher_block": teacher,
            "distance": distance,
            "gap": "dynamic",
            "gap_max": 0.2,
            "head": True,
            "teacher_fraction": 1.0,
        }
        assert weight_at(experiment) == pytest.approx(weights[kind == "dit"], rel=1e-6)


@pytest.mark.parametrize("resolution, guidance", [(256, 1.8), (512, 2.5)])
def test_sit_samples_as_the_paper_does(resolution, guidance):
    experiment = Experiment.from_dict(load("sit_sra", f"XL/2,res={resolution}"))
    process = experiment.process
    assert (process.outputs, process.path, process.weighting) == (1, "linear", "uniform")
    settings = experiment.guidance()
    assert (settings.scale, settings.low, settings.high) == (guidance, 0.0, 0.7)
    assert settings.channels in (0, 4)  # all of the latent's
    steps = experiment.solver_steps()
    assert experiment.sampling.solver == "sde" and len(steps) == 250
    assert [steps[i].time for i in (0, 1, -1)] == pytest.approx([1.0, 1.0 - 0.96 / 249, 0.04])


def test_dit_samples_as_its_authors_do():
    experiment = Experiment.from_dict(load("dit_sra", "XL/2"))
    assert experiment.process.outputs == 2
    assert experiment.sampling.solver == "ddpm" and len(experiment.solver_steps()) == 250
    assert experiment.guidance().channels == 3


# The release's schedule: constant through epochs 0 to 149 (99 at 512), then 10^(-(epoch - 149) /
# 1000) (10^(-(epoch - 99) / 800)).
@pytest.mark.parametrize("kind, weight", [("sit", 0.2), ("dit", 0.04)])
@pytest.mark.parametrize("resolution, last, decade", [(256, 149, 1000), (512, 99, 800)])
def test_the_released_weight_decays_after_its_last_constant_epoch(
    kind, weight, resolution, last, decade
):
    config = load(f"{kind}_sra", f"B/2,res={resolution},recipe=release")
    schedule = method_of(Experiment.from_dict(config)).weight

    def at(epoch, step=0):
        return float(schedule(jnp.int32(epoch * STEPS_PER_EPOCH + step)))

    for epoch in (0, last - 1, last):
        assert at(epoch) == at(epoch, STEPS_PER_EPOCH - 1) == pytest.approx(weight, rel=1e-6)
    for epoch in (last + 1, last + 2, last + 100, 799):
        expected = weight * math.pow(10.0, -(epoch - last) / decade)
        assert at(epoch) == pytest.approx(expected, rel=1e-5)
        assert at(epoch, STEPS_PER_EPOCH - 1) == at(epoch)
    assert at(last + decade) == pytest.approx(weight / 10, rel=1e-5)


@pytest.mark.parametrize("recipe", ["paper", "cosine"])
def test_the_other_recipes_are_constant(recipe):
    experiment = Experiment.from_dict(load("sit_sra", f"XL/2,recipe={recipe}"))
    assert weight_at(experiment) == weight_at(experiment, 3_999_999)


def test_the_weight_option_takes_every_way_to_write_a_number():
    for text, weight in {"0.35": 0.35, "1": 1.0, "1e-3": 1e-3, ".5": 0.5}.items():
        experiment = Experiment.from_dict(load("sit_sra", f"S/2,weight={text}"))
        assert weight_at(experiment) == pytest.approx(weight, rel=1e-6)


@pytest.mark.parametrize("kind", ["sit", "dit"])
@pytest.mark.parametrize(
    "name, size, channels, classes, examples",
    [("digits", 8, 1, 10, 1797), ("shapes", 32, 3, shapes.NUM_CLASSES, shapes.TRAINING)],
)
def test_embedded_sets_take_the_method_on_a_small_model(
    name, size, channels, classes, examples, kind
):
    experiment = Experiment.from_dict(load(name, kind))
    model = experiment.trunk("cpu").config
    assert (model.outputs, *model.layout.shape) == (OUTPUTS[kind], size, size, channels)
    assert model.conditioning.num_classes == experiment.conditioning.num_classes == classes
    assert experiment.data.examples_per_epoch == examples
    assert experiment.data.path in EMBEDDED
    method = method_of(experiment)
    assert (method.distance, method.gap_max) == ("smooth_l1", 0.2)
    assert weight_at(experiment) == pytest.approx(0.2)
    changed = OPTIMIZER | {"learning_rate": experiment.optimizer.learning_rate}
    assert dataclasses.asdict(experiment.optimizer).items() >= changed.items()
    assert load(name) == load(name, "sit")


# The paper's ablations (its tables 1 to 5), as overrides of its recipe.
ABLATIONS = [
    ("method", {"method__sra__student_block": 8, "method__sra__teacher_block": 8}),
    ("method", {"method__sra__student_block": 1, "method__sra__teacher_block": 28}),
    ("method", {"method__sra__gap": "fixed"}),
    ("method", {"method__sra__gap_max": 0.0}),
    ("method", {"method__sra__gap_max": 1.0}),
    ("method", {"method__sra__distance": "l1"}),
    ("method", {"method__sra__distance": "l2"}),
    ("method", {"method__sra__distance": "cosine"}),
    ("method", {"method__sra__distance": "cosine_over_tokens"}),
    ("method", {"method__sra__head": False}),
    ("train", {"train__ema_decay": 0.999}),
    ("train", {"train__ema_decay": 0.0}),
    ("process", {"process__path": "cosine", "process__weighting": "lognormal"}),
]


@pytest.mark.parametrize("section, changes", ABLATIONS, ids=lambda value: str(value))
def test_ablations_are_overrides(section, changes):
    base = load("sit_sra", "XL/2")
    before = Experiment.from_dict(base)
    after = Experiment.from_dict(override(base, **changes))
    values = {name.rpartition("__")[2]: value for name, value in changes.items()}
    if section == "method":
        assert method_of(after) == dataclasses.replace(method_of(before), **values)
        assert dataclasses.replace(after, methods=before.methods) == before
        assert method_of(after).head == values.get("head", True)
    else:
        expected = dataclasses.replace(getattr(before, section), **values)
        assert getattr(after, section) == expected != getattr(before, section)
        assert dataclasses.replace(after, **{section: getattr(before, section)}) == before


def test_a_config_survives_json():
    for name, argument in (
        ("sit_sra", "XL/2"),
        ("dit_sra", "B/4"),
        ("digits", "dit"),
        ("shapes", "sit"),
    ):
        config = load(name, argument)
        again = json.loads(json.dumps(config))
        assert Experiment.from_dict(again) == Experiment.from_dict(config)


# Changes of the SiT config that cannot be, and what the refusal must name.
BAD_SIT = [
    ({"model__dpth": 3}, "'dpth'", "did you mean 'depth'"),
    ({"optimizer__learningrate": 1.0}, "'learningrate'", "did you mean 'learning_rate'"),
    ({"method__sra__techer_block": 4}, "'techer_block'", "did you mean 'teacher_block'"),
    ({"process__pth": "linear"}, "'pth'", "did you mean 'path'"),
    ({"method__sra__student_block": 21}, "student block 21", "teacher block 20"),
    ({"method__sra__student_block": 0}, "student block 0", "between 1 and"),
    ({"method__sra__teacher_block": 29}, "teacher_block is 29", "28 blocks"),
    ({"model__depth": 12}, "teacher_block is 20", "12 blocks"),
    ({"model__patch_size": 3}, "patch size 3", "side 32"),
    ({"model__patch_size": 0}, "patch is 0", "at least 1"),
    ({"model__num_heads": 5}, "width 1152", "5 heads"),
    ({"model__dtype": "float16"}, "'float16'", "bfloat16"),
    ({"model__remat": "all"}, "'all'", "full"),
    ({"method__sra__distance": "cosin"}, "'cosin'", "did you mean 'cosine'"),
    ({"method__sra__gap": "fix"}, "'fix'", "fixed"),
    ({"method__sra__gap_max": 1.01}, "gap_max is 1.01", "[0, 1]"),
    ({"method__sra__gap_max": -0.1}, "gap_max is -0.1", "[0, 1]"),
    ({"method__sra__weight": -0.2}, "weight is -0.2", "at least 0"),
    ({"method__sra__weight": math.nan}, "weight is nan", "at least 0"),
    ({"method__sra__weight": math.inf}, "weight is inf", "at least 0"),
    ({"process__name": "interpolent"}, "'interpolent'", "did you mean 'interpolant'"),
    ({"process__path": "liner"}, "'liner'", "did you mean 'linear'"),
    ({"process__weighting": "normal"}, "'normal'", "lognormal"),
    ({"sampling__solver": "ddpm"}, "'ddpm'", "sde, euler, heun"),
    ({"sampling__solver": "hein"}, "'hein'", "did you mean 'heun'"),
    ({"sampling__steps": "many"}, "'many'", "a number"),
    ({"sampling__steps": "10,20"}, "(10, 20)", "one number"),
    ({"sampling__steps": "1"}, "steps is 1", "at least 2"),
    ({"sampling__guidance": 0.5}, "guidance is 0.5", "at least 1"),
    ({"sampling__guidance": math.nan}, "guidance is nan", "at least 1"),
    ({"sampling__guidance": math.inf}, "guidance is inf", "at least 1"),
    ({"sampling__guidance_interval": (0.7, 0.0)}, "0.7,0.0", "LOW <= HIGH"),
    ({"sampling__guidance_interval": (0.0, 1.5)}, "0.0,1.5", "<= 1"),
    ({"sampling__guidance_interval": (0.0, 0.5, 1.0)}, "(0.0, 0.5, 1.0)", "guidance_interval"),
    ({"sampling__guidance_channels": -1}, "-1", "at least 0"),
    ({"train__microbatches": 3}, "batch_size 256", "3 microbatches"),
    (
        {"train__batch_size": 6, "method__sra__teacher_fraction": 0.25},
        "batch_size 6",
        "groups of 4",
    ),
    ({"method__sra__teacher_fraction": 0.7}, "teacher_fraction is 0.7", "0.5"),
    ({"train__microbatches": 0}, "microbatches is 0", "at least 1"),
    ({"train__steps": 0}, "steps is 0", "at least 1"),
    ({"train__keep": 0}, "keep is 0", "at least 1"),
    ({"train__seed": -1}, "seed", "negative"),
    ({"train__seed": 2**32}, "seed", "2**32"),
    ({"train__label_dropout": 1.1}, "label_dropout is 1.1", "[0, 1]"),
    ({"train__label_dropout": math.nan}, "label_dropout is nan", "[0, 1]"),
    ({"train__ema_decay": 1.0}, "ema_decay is 1.0", "[0, 1)"),
    ({"optimizer__learning_rate": 0.0}, "learning_rate is 0.0", "above 0"),
    ({"optimizer__learning_rate": math.nan}, "learning_rate is nan", "above 0"),
    ({"optimizer__learning_rate": math.inf}, "learning_rate is inf", "finite"),
    ({"optimizer__eps": math.inf}, "eps is inf", "finite"),
    ({"method__sra__decade_epochs": -3}, "decade_epochs -3", "positive"),
    ({"sampling__guidance_channels": 9}, "guidance_channels is 9", "4 channels"),
    ({"model__width": "16"}, "model.width is '16'", "int"),
    ({"train__log_every": 2.5}, "train.log_every is 2.5", "int"),
    ({"method__sra__weight": "much"}, "sra.weight is 'much'", "float"),
    ({"optimizer__weight_decay": math.nan}, "weight_decay is nan", "at least 0"),
    ({"optimizer__b2": 1.0}, "b2 is 1.0", "[0, 1)"),
    ({"optimizer__clip_norm": -1.0}, "clip_norm is -1.0", "above 0"),
    ({"data__latent_shape": (32, 0, 4)}, "(32, 0, 4)", "(height, width, channels)"),
    ({"data__latent_shape": (32, 17, 4)}, "patch size 2", "side 17"),
    ({"data__latent_shape": (32, 32)}, "(32, 32)", "3 values"),
    ({"data__num_classes": 0}, "num_classes", "at least 1"),
    ({"mesh__data": -1, "mesh__fsdp": -1}, "fsdp -1", "at most one -1"),
    ({"mesh__tensor": 0}, "tensor 0", "positive"),
]
BAD_DIT = [
    ({"sampling__steps": "1001"}, "1001", "1 to 1000"),
    ({"sampling__steps": "500,501"}, "501", "1 to 500"),
    ({"sampling__steps": "0"}, "keeps 0", "1 to 1000"),
    ({"sampling__solver": "sde"}, "'sde'", "ddpm, ddim"),
    ({"method__sra__gap_max": 1.5}, "gap_max is 1.5", "[0, 1]"),
    ({"process__path": "linear"}, "'path'", "process"),
    ({"method__sra__teacher_block": 40}, "teacher_block is 40", "28 blocks"),
]


@pytest.mark.parametrize(
    "kind, changes, value, advice",
    [("sit", *row) for row in BAD_SIT] + [("dit", *row) for row in BAD_DIT],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_bad_values_are_refused_by_name(kind, changes, value, advice):
    config = override(load(f"{kind}_sra", "XL/2"), **changes)
    assert_refused(lambda: Experiment.from_dict(config), value, advice)


BAD_ARGUMENTS = [
    ("XL", "'XL'", "as in XL/2"),
    ("XL/3", "'XL/3'", "2, 4, 8"),
    ("XXL/2", "'XXL'", "S, B, L, XL"),
    ("xl/2", "'xl'", "S, B, L, XL"),
    ("XL/2,res=1024", "'1024'", "256, 512"),
    ("XL/2,recipe=papr", "'papr'", "did you mean 'paper'"),
    ("XL/2,receipe=paper", "'receipe'", "did you mean 'recipe'"),
    ("XL/2,weight=heavy", "'heavy'", "a number"),
    ("XL/2,weight=", "''", "a number"),
    ("XL/2,", "''", "res, method, recipe, weight"),
    ("", "''", "as in XL/2"),
    ("XL/2,weight=-1", "-1", "at least 0"),
    ("XL/2,weight=nan", "nan", "at least 0"),
]


@pytest.mark.parametrize("argument, value, advice", BAD_ARGUMENTS, ids=lambda value: value)
def test_bad_config_arguments_are_refused_by_name(argument, value, advice):
    for name in ("sit_sra", "dit_sra"):
        assert_refused(lambda name=name: Experiment.from_dict(load(name, argument)), value, advice)


@pytest.mark.parametrize("name", ["digits", "shapes"])
def test_bad_arguments_of_embedded_sets_are_refused_by_name(name):
    assert_refused(lambda: load(name, "dot"), "'dot'", "did you mean")
    assert_refused(lambda: load(name, "sit,res=256"), "'res'", "config option")


def test_missing_parts_are_named():
    whole = load("sit_sra", "S/2")
    without = {name: fields for name, fields in whole.items() if name != "optimizer"}
    assert_refused(lambda: Experiment.from_dict(without), "config lacks", "optimizer")
    for section, field in (("model", "depth"), ("method.sra", "student_block"), ("train", "steps")):
        cut = override(whole)
        fields = cut["method"]["sra"] if section == "method.sra" else cut[section]
        del fields[field]
        assert_refused(lambda cut=cut: Experiment.from_dict(cut), section, f"lacks {field}")
    more = whole | {"modle": {}}
    assert_refused(lambda: Experiment.from_dict(more), "'modle'", "did you mean 'model'")


def test_latents_need_not_be_square():
    config = override(load("sit_sra", "S/2"), data__latent_shape=(32, 16, 4))
    assert Experiment.from_dict(config).trunk("cpu").sizes.layout.grid == (16, 8)
