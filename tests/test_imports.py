"""Imports run one way, and the core needs jax, flax and optax alone."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "sra_jax"

# The lowest first: a room imports from itself and from the rooms before it.
ROOMS = (
    "core",
    "distributed",
    "processes",
    "conditioning",
    "models",
    "codecs",
    "methods",
    "data",
    "checkpoints",
    "training",
    "sampling",
    "evaluation",
    "probing",
    "torch_weights",
    "config",
    "run",
    "pods",
    "jobs",
    "cli",
)
TOP = ("", "__main__")  # the files at the top of the package, which import any room


def read_package(root: Path) -> dict[str, str]:
    """Sources of every module of a package by dotted name below it ("" is the package itself)."""
    sources = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        sources[".".join(parts[:-1] if is_package else parts)] = path.read_text()
    return sources


def imported(source: str, module: str, is_package: bool) -> set[str]:
    """Dotted names below sra_jax of what a source imports, at the top or inside functions."""
    full = ["sra_jax", *module.split(".")] if module else ["sra_jax"]
    package = full if is_package else full[:-1]
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*start, *([node.module] if node.module else [])])
            names |= {f"{base}.{alias.name}" for alias in node.names}
    return {name.partition(".")[2] for name in names if name.split(".")[0] == "sra_jax"}


def find_violations(sources: dict[str, str]) -> list[str]:
    """One line for each module outside the rooms, and for each import of a later room.

    Randomness enters in training and above: what lies lower is given its keys.
    """
    packages = {name.rpartition(".")[0] for name in sources}
    problems = []
    for module, source in sources.items():
        room = module.split(".")[0]
        if module in TOP:
            continue
        if room not in ROOMS:
            problems.append(f"{module} lies in no room")
            continue
        level = ROOMS.index(room)
        for target in imported(source, module, module in packages):
            other = target.split(".")[0]
            later = other not in ROOMS[: level + 1]
            draws = target.startswith("core.random") and level < ROOMS.index("training")
            if later or (draws and room != "core"):
                problems.append(f"{module} imports {target}")
    return problems


def test_imports_run_one_way():
    sources = read_package(PACKAGE)
    assert {name.split(".")[0] for name in sources} == {*ROOMS, *TOP}
    assert find_violations(sources) == []


@pytest.mark.parametrize(
    ("module", "source", "problem"),
    [
        ("methods.sra", "import sra_jax.training.step", "methods.sra imports training.step"),
        ("models.layers", "import sra_jax.methods.sra", "models.layers imports methods.sra"),
        ("models.layers", "from ..methods import sra", "models.layers imports methods.sra"),
        ("models", "from .. import methods", "models imports methods"),
        ("training.loop", "from sra_jax.jobs import train", "training.loop imports jobs.train"),
        ("config.schema", "def f():\n    import sra_jax.run.a", "config.schema imports run.a"),
        ("processes.ddpm", "from sra_jax.core.random import key", "processes.ddpm imports core"),
        ("conditioning", "import sra_jax.models", "conditioning imports models"),
        ("core.errors", "import sra_jax", "core.errors imports "),
        ("torch_weights.a", "import sra_jax.config", "torch_weights.a imports config"),
        ("utils", "", "utils lies in no room"),
    ],
)
def test_the_checker_finds_arrows_that_run_back(module, source, problem):
    """In a made-up package that is otherwise in order."""
    sources = {
        "": "from sra_jax.run.directory import load_model",
        "models": "from sra_jax.models.layers import Block",
        "models.layers": "from sra_jax.core.errors import InputError\nimport jax.numpy as methods",
        "training.step": "from sra_jax.methods.sra import loss\nfrom ..core.random import key",
        "cli.train": "from sra_jax.jobs.train import train",
        "jobs.train": "from sra_jax.run import directory\nimport sra_jax.data.pipeline",
    }
    assert find_violations(sources) == []
    problems = find_violations(sources | {module: source})
    assert problems[0].startswith(problem)


# absl is not among them: chex, and so optax, need it.
BLOCKED = (
    "PIL",
    "array_record",
    "clu",
    "grain",
    "ml_collections",
    "orbax",
    "scipy",
    "sklearn",
    "tensorboard",
    "tensorflow",
    "tensorflow_datasets",
    "torch",
)
CORE_ALONE = f"""
import sys
for name in {BLOCKED}:
    sys.modules[name] = None
from functools import partial
import jax, jax.numpy as jnp
import sra_jax.models, sra_jax.processes, sra_jax.methods, sra_jax.training.step
from sra_jax.conditioning import ClassLabels
from sra_jax.methods import SRA
from sra_jax.models import DiT, DiTConfig, LatentLayout
from sra_jax.training.flops import step_flops
from sra_jax.training.objective import Objective
from sra_jax.training.optimizer import OptimizerConfig, make_optimizer
from sra_jax.training.state import init_state
from sra_jax.training.step import StepConfig, make_train_step
labels = ClassLabels(3)
config = DiTConfig(LatentLayout(4, 4, 1, 2), labels, outputs=1, width=8, depth=2, num_heads=2)
methods = (SRA(student_block=1, teacher_block=2),)
objective = Objective(DiT(config), sra_jax.processes.Interpolant(), labels, methods)
optimizer = make_optimizer(OptimizerConfig())
state = jax.eval_shape(partial(init_state, objective, optimizer, 0))
batch = dict(moments=jnp.zeros((2, 4, 4, 2)), labels=jnp.zeros(2, jnp.int32))
_, metrics = jax.eval_shape(make_train_step(objective, optimizer, StepConfig()), state, batch)
assert step_flops(objective, objective).total > 0
print(sorted(metrics))
"""


def test_the_core_needs_jax_flax_and_optax_alone():
    result = subprocess.run([sys.executable, "-c", CORE_ALONE], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "'alignment'" in result.stdout
