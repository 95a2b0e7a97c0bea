"""Config files are made of these: the paper's training set-up, and the argument after the colon.

A config file (`configs/`) starts from `base_config`, sets what is its own, and returns it. A flag
can then override every field, as in --config.train.batch_size=1024. The fields are explained in the
dataclasses of `sra_jax/config/schema.py` and, for a method, in its file in `sra_jax/methods/`.
"""

from collections.abc import Mapping, Sequence

from ml_collections import ConfigDict

from sra_jax.config.build import defaults
from sra_jax.config.methods import method_section
from sra_jax.config.schema import (
    DataConfig,
    EvaluationConfig,
    ModelConfig,
    SamplingConfig,
    TrainConfig,
)
from sra_jax.core.errors import InputError, expect_one_of
from sra_jax.distributed.mesh import MeshConfig
from sra_jax.methods import METHODS
from sra_jax.models import SIZES, DiTConfig, name_variant, parse_variant
from sra_jax.processes import PROCESSES
from sra_jax.training.optimizer import OptimizerConfig

NO_METHOD = "none"
IMAGENET_OPTIONS = {
    "res": ("256", "512"),
    "method": ("sra", *sorted(METHODS.keys() - {"sra"}), NO_METHOD),
    "recipe": ("paper", *sorted({r for m in METHODS.values() for r in m.recipes} - {"paper"})),
    "weight": (),
    "slice": ("any", "v5e:4x4", "v5e:16x16", "v5p:2x2x4"),
}
# The mesh (data, fsdp, tensor) and rematerialisation found best for XL/2 with
# `sra-jax compile --sweep` (benchmarks/RESULTS.md).
BEST_LAYOUTS = {
    "v5e:4x4": ((2, 8, 1), "dots"),
    "v5e:16x16": ((16, 16, 1), "dots"),
    "v5p:2x2x4": ((16, 1, 1), "dots"),
}
KINDS = {"sit": "interpolant", "dit": "ddpm"}  # the process of each


def base_config() -> ConfigDict:
    """The defaults of every section: the paper's training (sec. 4), without a method.

    What has no default (the model's size, the data, the length, the solver) is empty or zero.
    """
    sections = {
        "model": ModelConfig,
        "optimizer": OptimizerConfig,
        "data": DataConfig,
        "train": TrainConfig,
        "mesh": MeshConfig,
        "sampling": SamplingConfig,
        "evaluation": EvaluationConfig,
    }
    config = {name: defaults(section) for name, section in sections.items()}
    config |= {"process": {"name": ""}, "method": {}, "method_files": ()}
    return ConfigDict(config)


def set_process(config: ConfigDict, kind: str) -> None:
    """Gives `config` the process of a "sit" or a "dit", and the solver of its samples."""
    process = PROCESSES[KINDS[kind]]
    config.process = ConfigDict({"name": KINDS[kind], **defaults(process)})
    config.sampling.solver = process.solvers[0]


def set_method(config: ConfigDict, name: str, **fields) -> None:
    """Gives `config` the method `name` beside those that it has."""
    config.method[name] = ConfigDict(method_section(name, **fields))


def imagenet_config(argument: str, kind: str) -> ConfigDict:
    """A published model on ImageNet latents of the SD-VAE, with a method by one of its recipes.

    Args:
      argument: what the config files document: "XL/2,res=512,recipe=cosine".
      kind: "sit" or "dit". It decides the process, the method's blocks and how to sample.

    Raises:
      InputError: an unknown model, option or choice.
    """
    variant, option = parse_argument(argument, IMAGENET_OPTIONS)
    (shape, patch), resolution = parse_variant(variant), int(option["res"])
    config = base_config()
    config.model.update(patch_size=patch, **shape._asdict())
    if option["slice"] in BEST_LAYOUTS:
        mesh, config.model.remat = BEST_LAYOUTS[option["slice"]]
        config.mesh.update(dict(zip(("data", "fsdp", "tensor"), mesh, strict=True)))
    set_process(config, kind)
    if kind == "sit":
        guidance = 2.5 if resolution == 512 else 1.8
        config.sampling.update(guidance=guidance, guidance_interval=(0.0, 0.7))
    else:
        config.sampling.update(guidance=1.5, guidance_channels=3)
    name = option["method"]
    if name != NO_METHOD:
        method = METHODS[name]
        expect_one_of(f"recipe of {name}", option["recipe"], method.recipes)
        size, outputs = variant.partition("/")[0], PROCESSES[KINDS[kind]].outputs
        set_method(config, name, **method.recipe(option["recipe"], size, outputs, resolution))
        if "weight" in option:
            config.method[name].weight = float(option["weight"])
    config.data.update(
        path="data/imagenet",
        latent_shape=(resolution // 8, resolution // 8, 4),
        num_classes=1000,
        examples_per_epoch=1_281_167,
    )
    config.train.update(steps=4_000_000, keep_every=50_000)
    return config


def imported_config(model: DiTConfig, head: bool, path: str, original: bool) -> ConfigDict:
    """The config of a model that was trained elsewhere.

    Its shape comes from the checkpoint, everything else from `configs/sit_sra.py` or `dit_sra.py`.

    Args:
      model: its shape.
      head: whether it has SRA's projection head; without it, it is a plain SiT or DiT.
      path: the interpolant's, for a SiT.
      original: whether it is of the SiT release, which samples in its own way.
    """
    kind = next(k for k, name in KINDS.items() if PROCESSES[name].outputs == model.outputs)
    layout = model.layout
    variant = name_variant(model.width, model.depth, model.num_heads, layout.patch)
    options = f"res={512 if layout.height == 64 else 256},method={'sra' if head else NO_METHOD}"
    config = imagenet_config(f"{variant or 'XL/2'},{options}", kind)
    config.model.update(
        patch_size=layout.patch, width=model.width, depth=model.depth, num_heads=model.num_heads
    )
    if head and variant is None:  # as deep in proportion as in XL
        sra, depth = config.method.sra, SIZES["XL"].depth
        for block in ("student_block", "teacher_block"):
            sra[block] = max(1, round(sra[block] * model.depth / depth))
    config.data.update(latent_shape=layout.shape, num_classes=model.conditioning.num_classes)
    three = 3 if layout.channels > 3 else 0  # guided by the scripts that guide three
    if kind == "dit":
        config.sampling.guidance_channels = three
    else:
        config.process.path = path
    if kind == "sit" and original:
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
