"""What config files are made of: the paper's training set-up, and the argument after the colon.

A config file (`configs/`) starts from `base_config`, says what is its own, and returns it; every
field can then be overridden by a flag, as in --config.train.batch_size=1024. What the fields mean
stands with the dataclasses in `sra_jax/config/schema.py`.
"""

from collections.abc import Mapping, Sequence

from ml_collections import ConfigDict

from sra_jax.core.errors import InputError, expect_one_of
from sra_jax.models import SIZES, TransformerConfig, name_variant, parse_variant

IMAGENET_OPTIONS = {
    "res": ("256", "512"),
    "recipe": ("paper", "release", "cosine"),
    "weight": (),
    "slice": ("any", "v5e:4x4", "v5e:16x16", "v5p:2x2x4"),
}
# The mesh (data, fsdp, tensor) and rematerialisation found best for XL/2 with --sweep of
# sra_jax.cli.compile (benchmarks/RESULTS.md).
BEST_LAYOUTS = {
    "v5e:4x4": ((2, 8, 1), "dots"),
    "v5e:16x16": ((16, 16, 1), "dots"),
    "v5p:2x2x4": ((16, 1, 1), "dots"),
}
# The released code's schedule, by resolution: its last epoch of constant weight, counted from 0,
# and in how many epochs after it the weight falls to a tenth.
RELEASE_EPOCHS = {256: (149, 1000), 512: (99, 800)}


def base_config() -> ConfigDict:
    """The paper's training (sec. 4), without a model, data, blocks, length or solver."""
    return ConfigDict(
        {
            "model": {
                "patch_size": 2,
                "width": 0,
                "depth": 0,
                "num_heads": 0,
                "dtype": "auto",
                "remat": "none",
                "attention": "auto",
                "scan_unroll": 1,
            },
            "process": {"name": ""},
            "sra": {
                "weight": 0.2,
                "student_block": 0,
                "teacher_block": 0,
                "distance": "smooth_l1",
                "gap": "dynamic",
                "gap_max": 0.2,
                "head": True,
                "teacher_fraction": 1.0,
                "constant_epochs": 0,
                "decade_epochs": 0,
            },
            "optimizer": {
                "learning_rate": 1e-4,
                "b1": 0.9,
                "b2": 0.999,
                "eps": 1e-8,
                "weight_decay": 0.0,
                "clip_norm": 1.0,
                "moment_dtype": "float32",
            },
            "data": {
                "path": "",
                "latent_shape": (0, 0, 0),
                "num_classes": 0,
                "examples_per_epoch": 0,
            },
            "train": {
                "steps": 0,
                "batch_size": 256,
                "seed": 0,
                "label_dropout": 0.1,
                "ema_decay": 0.9999,
                "microbatches": 1,
                "log_every": 100,
                "checkpoint_every": 5000,
                "keep": 3,
                "keep_every": 0,
                "skip_nonfinite": False,
            },
            "mesh": {"data": -1, "fsdp": 1, "tensor": 1},
            "sampling": {
                "solver": "",
                "steps": "250",
                "guidance": 1.0,
                "guidance_interval": (0.0, 1.0),
                "guidance_channels": 0,
            },
            "evaluation": {
                "grid_every": 0,
                "fid_every": 0,
                "fid_images": 5000,
                "features": "inception",
                "reference": "",
                "inception": "",
                "vae": "",
            },
        }
    )


def set_process(config: ConfigDict, kind: str) -> None:
    """Gives `config` the process of a "sit" or a "dit", and the solver of its samples."""
    if kind == "sit":
        config.process = ConfigDict(
            {"name": "interpolant", "path": "linear", "weighting": "uniform"}
        )
        config.sampling.solver = "sde"
    else:
        config.process = ConfigDict({"name": "ddpm"})
        config.sampling.solver = "ddpm"


def imagenet_config(argument: str, kind: str, release_weight: float) -> ConfigDict:
    """A published model on ImageNet latents of the SD-VAE, aligned by one of three recipes.

    `argument` is what the config files document: "XL/2,res=512,recipe=cosine". `kind` ("sit" or
    "dit") chooses the process, the aligned blocks and how samples are drawn; `release_weight` is
    the released code's weight.

    Raises:
      InputError: an unknown model, option or choice.
    """
    variant, option = parse_argument(argument, IMAGENET_OPTIONS)
    (size, patch), resolution = parse_variant(variant), int(option["res"])
    config = base_config()
    config.model.update(
        patch_size=patch, width=size.width, depth=size.depth, num_heads=size.num_heads
    )
    if option["slice"] in BEST_LAYOUTS:
        mesh, config.model.remat = BEST_LAYOUTS[option["slice"]]
        config.mesh.update(dict(zip(("data", "fsdp", "tensor"), mesh, strict=True)))
    set_process(config, kind)
    if kind == "sit":
        guidance = 2.5 if resolution == 512 else 1.8
        config.sampling.update(guidance=guidance, guidance_interval=(0.0, 0.7))
    else:
        config.sampling.update(guidance=1.5, guidance_channels=3)
    student, teacher = {"sit": size.sit_blocks, "dit": size.dit_blocks}[kind]
    config.sra.update(student_block=student, teacher_block=teacher)
    if option["recipe"] == "release":
        constant, decade = RELEASE_EPOCHS[resolution]
        config.sra.update(weight=release_weight, constant_epochs=constant, decade_epochs=decade)
    if option["recipe"] == "cosine":
        config.sra.update(distance="cosine", weight=0.5)
    if "weight" in option:
        config.sra.weight = float(option["weight"])
    config.data.update(
        path="data/imagenet",
        latent_shape=(resolution // 8, resolution // 8, 4),
        num_classes=1000,
        examples_per_epoch=1_281_167,
    )
    config.train.update(steps=4_000_000, keep_every=50_000)
    return config


def imported_config(model: TransformerConfig, head: bool, path: str, original: bool) -> ConfigDict:
    """The config of a model that was trained elsewhere: its shape, and for all that a checkpoint
    does not tell, what `configs/sit_sra.py` and `configs/dit_sra.py` say.

    Without a projection head it is a plain SiT or DiT, of weight 0. A SiT on `path` that is
    `original`, of the SiT release, is sampled as there.
    """
    variant = name_variant(model.width, model.depth, model.num_heads, model.patch_size)
    side, channels = model.input_size, model.in_channels
    options = f"res={512 if side == 64 else 256}" + ("" if head else ",weight=0")
    config = imagenet_config(f"{variant or 'XL/2'},{options}", model.kind, release_weight=0.0)
    config.model.update(
        patch_size=model.patch_size, width=model.width, depth=model.depth, num_heads=model.num_heads
    )
    if variant is None:  # as deep in proportion as in XL
        depth, blocks = SIZES["XL"].depth, (config.sra.student_block, config.sra.teacher_block)
        student, teacher = (max(1, round(block * model.depth / depth)) for block in blocks)
        config.sra.update(student_block=student, teacher_block=teacher)
    config.data.update(latent_shape=(side, side, channels), num_classes=model.num_classes)
    three = 3 if channels > 3 else 0  # guided channels, of the scripts that guide only so many
    if model.kind == "dit":
        config.sampling.guidance_channels = three
    else:
        config.process.path = path
    if model.kind == "sit" and original:
        config.sampling.update(guidance=1.5, guidance_interval=(0.0, 1.0), guidance_channels=three)
    return config


def parse_argument(
    argument: str, options: Mapping[str, Sequence[str]]
) -> tuple[str, dict[str, str]]:
    """ "XL/2,res=512" -> ("XL/2", {"res": "512"}), with the first choice of every other option.

    `options` maps a name to its choices; no choices means a number.

    Raises:
      InputError: an unknown option or choice, or no number.
    """
    variant, *assignments = argument.split(",")
    chosen = {name: choices[0] for name, choices in options.items() if choices}
    for assignment in assignments:
        name, _, value = assignment.partition("=")
        expect_one_of("config option", name, options)
        if options[name]:
            expect_one_of(name, value, options[name])
        elif not _is_number(value):
            raise InputError(f"config option {name} is {value!r}, expected a number")
        chosen[name] = value
    return variant, chosen


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
