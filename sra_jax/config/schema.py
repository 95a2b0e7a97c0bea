"""From a config file's nested dict to validated, frozen dataclasses: what one run is.

Everything that can be known to be wrong without data or devices is refused here, by name.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jax.sharding import Mesh, Sharding

from sra_jax.conditioning import ClassLabels
from sra_jax.config.build import build, check_names
from sra_jax.config.methods import load_method_files, read_methods
from sra_jax.core.errors import InputError, expect_one_of
from sra_jax.distributed.mesh import MeshConfig, batch_sharding
from sra_jax.evaluation.names import check_features
from sra_jax.methods import Method
from sra_jax.models import DiT, DiTConfig, LatentLayout
from sra_jax.processes import PROCESSES, Process
from sra_jax.sampling.guidance import Guidance
from sra_jax.sampling.solvers import Step, make_steps, parse_steps
from sra_jax.training.objective import Objective, joint_group
from sra_jax.training.optimizer import OptimizerConfig
from sra_jax.training.step import StepConfig, StepSettings

OPTIONAL = ("evaluation", "method_files")  # sections that runs of older versions lack


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The transformer, without what the data decide. "auto" computes in bfloat16 on accelerators,
    in float32 on CPU, and takes cuDNN's attention where it applies."""

    patch_size: int = 2
    width: int
    depth: int
    num_heads: int
    dtype: str = "auto"
    remat: str = "none"
    attention: str = "auto"
    scan_unroll: int = 1


@dataclass(frozen=True)
class DataConfig:
    """The records.

    Attributes:
      path: directory of the latents, or an embedded set.
      latent_shape, num_classes: what the latents must be.
      examples_per_epoch: how many there are.
      side_sets: directories of fields that methods read, encoded for the same records.
    """

    path: str
    latent_shape: tuple[int, int, int]
    num_classes: int
    examples_per_epoch: int
    side_sets: tuple[str, ...] = ()

    def __post_init__(self):
        shape = self.latent_shape
        if min(shape) < 1:
            raise InputError(f"data.latent_shape is {shape}, expected (height, width, channels)")
        if self.num_classes < 1 or self.examples_per_epoch < 1:
            raise InputError("data.num_classes and data.examples_per_epoch must be at least 1")


@dataclass(frozen=True, kw_only=True)
class TrainConfig(StepSettings):
    """The run: lengths and intervals in steps; `batch_size` is global; `keep_every=0` keeps no
    checkpoint beyond the newest `keep` and the best."""

    steps: int
    batch_size: int = 256
    log_every: int = 100
    checkpoint_every: int = 5000
    keep: int = 3
    keep_every: int = 0

    def __post_init__(self):
        super().__post_init__()
        for name in ("steps", "batch_size", "log_every", "checkpoint_every", "keep"):
            if getattr(self, name) < 1:
                raise InputError(f"train.{name} is {getattr(self, name)}, expected at least 1")
        if self.keep_every < 0 or not 0 <= self.seed < 2**32:
            raise InputError("train.keep_every and train.seed must not be negative (seed < 2**32)")


@dataclass(frozen=True)
class SamplingConfig:
    """Defaults of sampling from the run. `steps` is a number, for DiT perhaps
    "10,20"; `guidance_channels` leading channels are guided, 0 meaning all."""

    solver: str
    steps: str = "250"
    guidance: float = 1.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    guidance_channels: int = 0

    def __post_init__(self):
        if len(self.guidance_interval) != 2:
            raise InputError(
                f"sampling.guidance_interval is {self.guidance_interval}, expected (LOW, HIGH)"
            )


@dataclass(frozen=True)
class EvaluationConfig:
    """What a run shows of itself: intervals are in steps, 0 is never.

    A grid of samples every `grid_every`; every `fid_every`, the FID of `fid_images` samples against
    `reference`. `features` are those of "inception" (weights in the file `inception`) or of a small
    "classifier". `vae` is the folder of the VAE's weights, for latents of codec sd_vae.
    """

    grid_every: int = 0
    fid_every: int = 0
    fid_images: int = 5000
    features: str = "inception"
    reference: str = ""
    inception: str = ""
    vae: str = ""

    def __post_init__(self):
        check_features("evaluation.features", self.features)
        for name, lowest in {"grid_every": 0, "fid_every": 0, "fid_images": 2}.items():
            if getattr(self, name) < lowest:
                never = " (0 is never)" if lowest == 0 else ""
                raise InputError(
                    f"evaluation.{name} is {getattr(self, name)}, expected at least {lowest}{never}"
                )
        if self.fid_every and not self.reference:
            raise InputError("evaluation.fid_every needs evaluation.reference, real images")


@dataclass(frozen=True)
class Experiment:
    """One run, whole. Made by `from_dict`."""

    model: ModelConfig
    process: Process
    methods: tuple[Method, ...]
    optimizer: OptimizerConfig
    data: DataConfig
    train: TrainConfig
    mesh: MeshConfig
    sampling: SamplingConfig
    evaluation: EvaluationConfig = EvaluationConfig()

    @classmethod
    def from_dict(cls, config: Mapping[str, Any], with_methods: bool = True) -> "Experiment":
        """The experiment that a nested dict of plain values describes (see `configs/`).

        Without methods, their fields and files are not looked at: to sample and probe a run one
        need not know what it was trained with.

        Raises:
          InputError: a section or field that is unknown or missing, or a value that cannot be.
        """
        if "sra" in config:
            raise InputError(
                "the config's section sra is called method.sra now; write config.method = "
                '{"sra": {...}}, as configs/sit_sra.py does'
            )
        sections = {f.name: f for f in dataclasses.fields(cls)}
        names = [{"methods": "method"}.get(name, name) for name in sections] + ["method_files"]
        check_names("config", config, names, [n for n in names if n not in OPTIONAL])
        data = build(DataConfig, "data", config["data"])
        train = build(TrainConfig, "train", config["train"])
        methods = ()
        check_names("config section method", config["method"], config["method"], ())
        for name, fields in config["method"].items():
            check_names(f"config section method.{name}", fields, fields, ())
        if with_methods:
            load_method_files(config.get("method_files", ()))
            steps_per_epoch = max(data.examples_per_epoch // train.batch_size, 1)
            methods = read_methods(config["method"], steps_per_epoch)
        experiment = cls(
            model=build(ModelConfig, "model", config["model"]),
            process=_read_process(config["process"]),
            methods=methods,
            optimizer=build(OptimizerConfig, "optimizer", config["optimizer"]),
            data=data,
            train=train,
            mesh=build(MeshConfig, "mesh", config["mesh"]),
            sampling=build(SamplingConfig, "sampling", config["sampling"]),
            evaluation=build(EvaluationConfig, "evaluation", config.get("evaluation", {})),
        )
        experiment._check()
        return experiment

    @property
    def conditioning(self) -> ClassLabels:
        """The class labels that the model is given besides the time."""
        return ClassLabels(self.data.num_classes)

    def trunk(self, platform: str, batch_sharding: Sharding | None = None) -> DiT:
        """The trunk, computing as suits `platform` ("cpu", "gpu" or "tpu")."""
        fields = dataclasses.asdict(self.model)
        if fields["dtype"] == "auto":
            fields["dtype"] = "float32" if platform == "cpu" else "bfloat16"
        if fields["attention"] == "auto":
            head_width = self.model.width // max(self.model.num_heads, 1)
            suits = fields["dtype"] == "bfloat16" and head_width % 8 == 0 and head_width <= 128
            fields["attention"] = "cudnn" if platform == "gpu" and suits else "xla"
        layout = LatentLayout(*self.data.latent_shape, patch=fields.pop("patch_size"))
        config = DiTConfig(layout, self.conditioning, self.process.outputs, **fields)
        return DiT(config, batch_sharding)

    def objective(self, mesh: Mesh) -> Objective:
        """The training objective, on the devices of `mesh`."""
        platform = mesh.devices.flat[0].platform
        if self.model.attention == "cudnn" and platform != "gpu":
            raise InputError(
                f"model.attention is cudnn, which {platform} lacks; choose auto or xla"
            )
        trunk = self.trunk(platform, batch_sharding(mesh))
        return Objective(trunk, self.process, self.conditioning, self.methods)

    def step_config(self, scale: float, shift: float) -> StepConfig:
        """The settings of the train step on latents of this scale and shift."""
        shared = {f.name: getattr(self.train, f.name) for f in dataclasses.fields(StepSettings)}
        return StepConfig(**shared, scale=scale, shift=shift)

    @property
    def group(self) -> int:
        """Examples that methods keep together in a microbatch."""
        return joint_group(self.methods)

    @property
    def parts(self) -> int:
        """What every device's share of a batch must divide by."""
        return self.train.microbatches * self.group

    def guidance(self) -> Guidance:
        """The guidance that samples of this run use. Raises InputError if it cannot be."""
        settings, channels = self.sampling, self.data.latent_shape[2]
        if settings.guidance_channels > channels:
            raise InputError(
                f"sampling.guidance_channels is {settings.guidance_channels}, but latents have "
                f"{channels} channels; 0 guides all"
            )
        low, high = settings.guidance_interval
        return Guidance(settings.guidance, low, high, settings.guidance_channels)

    def solver_steps(self) -> list[Step]:
        """The steps of the solver that samples of this run use."""
        steps = parse_steps(self.sampling.steps)
        return make_steps(self.process, self.sampling.solver, steps)

    def _check(self) -> None:
        trunk = self.trunk("cpu")
        for method in self.methods:
            method.check(trunk.sizes)
            if lacking := method.needs - trunk.supports:
                raise InputError(
                    f"method.{method.name} needs a trunk with {', '.join(sorted(lacking))}, which "
                    f"{type(trunk).__name__} does not support; choose another method"
                )
        if self.train.batch_size % self.parts:
            raise InputError(
                f"train.batch_size {self.train.batch_size} does not divide into "
                f"{self.train.microbatches} microbatches of groups of {self.group} "
                "examples, which the methods keep together"
            )
        if self.evaluation.fid_every % self.train.checkpoint_every:
            raise InputError(
                f"evaluation.fid_every is {self.evaluation.fid_every}, expected a multiple of "
                f"train.checkpoint_every {self.train.checkpoint_every}: the best is to be kept"
            )
        self.guidance()
        self.solver_steps()


def _read_process(config: Mapping[str, Any]) -> Process:
    check_names("config section process", config, config, ["name"])
    fields = dict(config)
    name = fields.pop("name")
    expect_one_of("process", name, PROCESSES)
    return build(PROCESSES[name], "process", fields)
