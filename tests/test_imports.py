"""Imports run one way, and the core needs jax, flax and optax alone."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "sra_jax"

# Rooms, the lowest first: a room imports from its own layer and from those before it. What is not
# named here (the commands, and what puts them together) lies above all of these.
LAYERS = (
    ("errors", "endings", "files", "progress", "randomness"),
    ("processes", "codecs", "models"),
    ("sra",),
    ("data", "parallel"),
    ("training",),
    ("sampling", "evaluation", "weights"),
    ("experiment",),
)
LEVELS = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}
TOP = len(LAYERS)


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
    """One line for each import that runs back, and for each circle of rooms."""
    packages = {name.rpartition(".")[0] for name in sources}
    problems, arrows = [], {}
    for module, source in sources.items():
        room = module.split(".")[0]
        for target in imported(source, module, module in packages):
            other = target.split(".")[0]
            if other in ("", room):
                continue
            arrows.setdefault(room, set()).add(other)
            back = LEVELS.get(other, TOP) > LEVELS.get(room, TOP)
            chance_below_training = other == "randomness" and LEVELS.get(room, TOP) < 4
            if back or chance_below_training or not room:
                problems.append(f"{module or 'sra_jax'} imports {target}")
    for room in arrows:
        if room in reachable(arrows, room):
            problems.append(f"{room} imports itself by way of others")
    return problems


def reachable(arrows: dict[str, set[str]], start: str) -> set[str]:
    seen, waiting = set(), list(arrows.get(start, ()))
    while waiting:
        room = waiting.pop()
        if room not in seen:
            seen.add(room)
            waiting += arrows.get(room, ())
    return seen


def test_imports_run_one_way():
    sources = read_package(PACKAGE)
    rooms = {name.split(".")[0] for name in sources}
    assert rooms >= set(LEVELS), "a room of the design is gone"
    assert find_violations(sources) == []


@pytest.mark.parametrize(
    ("module", "source", "problem"),
    [
        (
            "sra",
            "from sra_jax.training.step import Objective",
            "sra imports training.step.Objective",
        ),
        ("models.layers", "import sra_jax.sra", "models.layers imports sra"),
        ("models.layers", "from ..sra import cosine", "models.layers imports sra.cosine"),
        ("models", "from .. import sra", "models imports sra"),
        ("training.loop", "from sra_jax import trainer", "training.loop imports trainer"),
        ("experiment", "def f():\n    import sra_jax.workdir", "experiment imports workdir"),
        (
            "processes.ddpm",
            "from sra_jax.randomness import key",
            "processes.ddpm imports randomness",
        ),
        ("errors", "from sra_jax.randomness import key", "errors imports randomness.key"),
        ("weights.a", "from sra_jax.experiment import E", "weights.a imports experiment.E"),
    ],
)
def test_the_checker_finds_arrows_that_run_back(module, source, problem):
    """In a made-up package that is otherwise in order."""
    sources = {
        "": '"""Docstring."""',
        "models": "from sra_jax.models.layers import Block",
        "models.layers": "from sra_jax.errors import InputError\nimport jax.numpy as sra",
        "training.step": "from sra_jax.sra import loss\nfrom ..randomness import key",
        "train": "from sra_jax.trainer import train",
        "trainer": "from sra_jax import workdir\nfrom sra_jax.data.pipeline import batches",
    }
    assert find_violations(sources) == []
    problems = find_violations(sources | {module: source})
    assert problems[0].startswith(problem)


def test_the_checker_finds_circles():
    circle = {
        "sampling.generate": "from sra_jax.weights import from_torch",
        "weights": "from sra_jax.evaluation import probe",
        "evaluation.probe": "from sra_jax.sampling.solvers import solve",
        "trainer": "from sra_jax.sampling.generate import sample",
    }
    assert len(find_violations(circle)) == 3
    del circle["weights"]
    assert find_violations(circle) == []


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
import sra_jax.models, sra_jax.processes, sra_jax.sra, sra_jax.training.step
from sra_jax.models import DiffusionTransformer, TransformerConfig
from sra_jax.training.optimizer import OptimizerConfig, make_optimizer
from sra_jax.training.state import init_state
from sra_jax.training.step import Objective, StepConfig, make_train_step
config = TransformerConfig("sit", 4, 2, 1, width=8, depth=2, num_heads=2, num_classes=3)
process = sra_jax.processes.Interpolant()
method, weight = sra_jax.sra.SRAConfig(1, 2), sra_jax.sra.WeightSchedule(0.2)
objective = Objective(DiffusionTransformer(config), process, method, weight)
optimizer = make_optimizer(OptimizerConfig())
state = jax.eval_shape(partial(init_state, objective.model, optimizer, 0, True))
batch = dict(moments=jnp.zeros((2, 4, 4, 2)), labels=jnp.zeros(2, jnp.int32))
_, metrics = jax.eval_shape(make_train_step(objective, optimizer, StepConfig()), state, batch)
print(sorted(metrics))
"""


def test_the_core_needs_jax_flax_and_optax_alone():
    result = subprocess.run([sys.executable, "-c", CORE_ALONE], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "'alignment'" in result.stdout
