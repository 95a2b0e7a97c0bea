"""One mesh or another, the same training; and what travels between devices is what must."""

import math
import re
import runpy
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from tiny import pixel_spec

from sra_jax.config.schema import Experiment
from sra_jax.core.errors import InputError
from sra_jax.distributed.launch import start_processes
from sra_jax.distributed.mesh import MeshConfig, batch_sharding, check_batch, make_mesh
from sra_jax.distributed.sharding import local_rows, place_batch, sharding_table, tree_shardings
from sra_jax.pods.hlo import Program
from sra_jax.run.program import make_program

DIGITS = Path(__file__).parents[2] / "configs/digits.py"
SPEC = pixel_spec(8, num_classes=10, dtype="float32")
BATCH, STEPS = 16, 10
WIDTH, DEPTH, TOKENS = 32, 2, 16
MESHES = [(8, 1, 1), (1, 8, 1), (2, 4, 1), (2, 2, 2), (1, 2, 4), (4, 1, 2)]


def experiment(mesh=(1, 1, 1), **overrides):
    config = runpy.run_path(str(DIGITS))["get_config"]()
    config.model.update(width=WIDTH, depth=DEPTH, num_heads=4)
    config.method.sra.update(student_block=1, teacher_block=2)
    config.train.update(batch_size=BATCH)
    config.mesh.update(dict(zip(("data", "fsdp", "tensor"), mesh, strict=True)))
    for name, value in overrides.items():
        section, _, field = name.partition("__")
        config[section][field] = value
    return Experiment.from_dict(config.to_dict())


def mesh_of(shape):
    return make_mesh(MeshConfig(*shape), jax.devices()[: math.prod(shape)])


def global_batch(step):
    rng = np.random.default_rng(step)
    moments = np.concatenate(
        [rng.standard_normal((BATCH, 8, 8, 1)), rng.uniform(0, 1, (BATCH, 8, 8, 1))], axis=-1
    )
    labels = rng.integers(0, 10, BATCH, dtype=np.int32)
    return {"moments": moments.astype(np.float32), "labels": labels}


def train(shape, **overrides):
    """Losses [STEPS] and final state, as numpy, of ten steps on a mesh."""
    mesh = mesh_of(shape)
    program = make_program(experiment(shape, **overrides), SPEC, mesh)
    sharding = batch_sharding(mesh)
    state, losses, rows = program.init(), [], local_rows(BATCH, sharding)
    for step in range(STEPS):
        placed = place_batch(global_batch(step), rows, BATCH, sharding)
        state, metrics = program.step(state, placed)
        losses.append(float(metrics["loss"]))
    return np.array(losses), jax.tree.map(np.asarray, state)


@pytest.fixture(scope="module")
def alone():
    return train((1, 1, 1))


def assert_same_training(found, expected):
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    for name in ("params", "ema"):
        for (path, a), b in zip(
            jax.tree_util.tree_leaves_with_path(getattr(found[1], name)),
            jax.tree.leaves(getattr(expected[1], name)),
            strict=True,
        ):
            if "qkv" in str(path) and "bias" in str(path):
                a, b = a[:, ::2], b[:, ::2]  # the keys' bias has no gradient but rounding
            difference = np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-3)
            assert difference < 1e-5 * STEPS, (name, jax.tree_util.keystr(path), difference)


@pytest.mark.parametrize("shape", MESHES, ids=lambda s: "x".join(map(str, s)))
def test_every_mesh_trains_alike(shape, alone):
    assert_same_training(train(shape), alone)


def test_microbatches_and_remat_on_a_mesh_train_alike(alone):
    assert_same_training(train((2, 2, 1), train__microbatches=2, model__remat="full"), alone)


def test_the_state_is_made_in_shards():
    mesh = mesh_of((1, 8, 1))
    program = make_program(experiment((1, 8, 1)), SPEC, mesh)
    memory = program.init.lower().compile().memory_analysis()
    whole = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(program.state))
    assert memory.output_size_in_bytes < 0.4 * whole
    kernel = program.init().params["trunk"]["blocks"]["mlp"]["fc1"]["kernel"]
    assert {shard.data.shape for shard in kernel.addressable_shards} == {
        (DEPTH, WIDTH // 8, 4 * WIDTH)
    }


# What travels.


def compiled(shape, **overrides):
    program = make_program(experiment(shape, **overrides), SPEC, mesh_of(shape))
    return program, Program(program.step.lower(program.state, program.batch).compile().as_text())


def test_data_parallel_reduces_the_gradients_once_and_no_more():
    program, text = compiled((8, 1, 1))
    collectives = text.collectives()
    assert {c.kind for c in collectives} == {"all-reduce"}
    params = program.state.params
    trained = (
        sum(leaf.size * 4 for leaf in jax.tree.leaves(params))
        - params["trunk"]["pos_embed"].size * 4
    )
    reduced = sum(c.count * c.size for c in collectives)
    assert trained <= reduced <= trained + 64  # and a few scalars, the metrics


def test_fsdp_gathers_parameters_and_no_tokens():
    program, text = compiled((1, 8, 1))
    leaves = jax.tree.leaves(program.state.params)
    parameter_sizes = {size for leaf in leaves for size in (leaf.size, leaf.size // DEPTH)}
    gathered = 0
    for c in text.collectives():
        for array in c.arrays:
            assert array.shape[:2] not in {(BATCH // 8, TOKENS), (BATCH, TOKENS)}, c
            if c.kind == "all-gather":
                assert math.prod(array.shape) * c.group in parameter_sizes, c
        gathered += c.count * c.size if c.kind == "all-gather" else 0
    # For the student's forward and backward pass and for the teacher, and not for the optimiser.
    assert 0 < gathered <= 3 * sum(leaf.size * 4 for leaf in leaves if any(leaf.sharding.spec))


# Rules, tables and bad input.


def named_by(rules, name):
    """The spec of the rule that names the path, or None."""
    return next((spec for pattern, spec in rules if re.search(rf"(^|/)({pattern})$", name)), None)


def test_every_parameter_of_every_kind_has_a_rule():
    """What trunk and method have by a rule, an optimiser's state has too; its counts are copied."""
    for kind in ("sit", "dit"):
        config = runpy.run_path(str(DIGITS))["get_config"](kind)
        for weight in (0.2, 0.0):
            config.method.sra.weight = weight
            run, mesh = Experiment.from_dict(config.to_dict()), mesh_of((1, 1, 1))
            rules, state = run.objective(mesh).rules, make_program(run, SPEC, mesh).state
            assert ("sra" in state.params["method"]) == (weight > 0)
            unnamed = set()
            for path, leaf in jax.tree_util.tree_leaves_with_path(state):
                name = jax.tree_util.keystr(path, simple=True, separator="/")
                spec = named_by(rules, name)
                assert leaf.sharding.spec == (PartitionSpec() if spec is None else spec), name
                unnamed |= {name} if spec is None else set()
            assert {name.rpartition("/")[2] for name in unnamed} == {"step", "count"}


def test_a_methods_rules_decide_on_its_own_parameters():
    """Not the trunk's, which name every bias."""
    sra = make_program(experiment((2, 2, 2)), SPEC, mesh_of((2, 2, 2))).state.params["method"][
        "sra"
    ]
    specs = {
        f"{a}/{b}": leaf.sharding.spec for a, layer in sra.items() for b, leaf in layer.items()
    }
    assert specs == {
        "fc1/kernel": PartitionSpec("fsdp", "tensor"),
        "fc1/bias": PartitionSpec("tensor"),
        "fc2/kernel": PartitionSpec("tensor", "fsdp"),
        "fc2/bias": PartitionSpec(),
    }


def test_optimiser_and_ema_are_split_as_their_parameters_are():
    state = make_program(experiment((2, 2, 2)), SPEC, mesh_of((2, 2, 2))).state
    spec = state.params["trunk"]["blocks"]["attention"]["qkv"]["kernel"].sharding.spec
    assert spec == PartitionSpec(None, "fsdp", None, "tensor", None)
    moments = state.opt_state[1][0]
    for tree in (state.ema, moments.mu, moments.nu):
        assert tree["trunk"]["blocks"]["attention"]["qkv"]["kernel"].sharding.spec == spec
        assert tree["method"]["sra"]["fc1"]["kernel"].sharding.spec == PartitionSpec(
            "fsdp", "tensor"
        )


MIB = 2**18  # float32 values


@pytest.mark.parametrize(
    ("shape", "dtype", "spec"),
    [
        ((MIB,), "float32", ("fsdp",)),
        ((MIB - 4,), "float32", ()),  # below 1 MiB
        ((MIB,), "bfloat16", ()),
        ((2 * MIB,), "bfloat16", ("fsdp",)),
        ((512, 1024), "float32", (None, "fsdp")),  # the largest axis
        ((1024, 512), "float32", ("fsdp",)),
        ((512, 1026), "float32", ("fsdp",)),  # the largest that four devices divide
        ((3, 512, 1026), "float32", (None, "fsdp")),
        ((513, 1026), "float32", ()),  # none that they divide
        ((), "float32", ()),
    ],
    ids=str,
)
def test_an_array_that_no_rule_names_is_split_if_it_is_large(shape, dtype, spec):
    stranger = {"method": {"new": jax.ShapeDtypeStruct(shape, np.dtype(dtype))}}
    found = tree_shardings(stranger, mesh_of((2, 4, 1)), ((r"old", PartitionSpec("data")),))
    assert found["method"]["new"].spec == PartitionSpec(*spec)


def test_the_first_rule_that_a_path_ends_with_decides():
    tree = {name: jax.ShapeDtypeStruct((8, 8), np.float32) for name in ("kernel", "other_kernel")}
    tree = {"trunk": {"blocks": tree}, "mu": {"trunk": {"blocks": tree}}}
    rules = (
        (r"blocks/kernel", PartitionSpec("fsdp")),
        (r"kernel", PartitionSpec("tensor")),
        (r"locks/other_kernel", PartitionSpec("data")),  # names end at a slash
    )
    found = tree_shardings(tree, mesh_of((2, 2, 2)), rules)
    for part in (found, found["mu"]):
        assert part["trunk"]["blocks"]["kernel"].spec == PartitionSpec("fsdp")
        assert part["trunk"]["blocks"]["other_kernel"].spec == PartitionSpec()


def test_an_axis_that_a_rule_cannot_split_is_an_error():
    tree = {"gate": jax.ShapeDtypeStruct((4, 6), np.float32)}
    with pytest.raises(InputError, match=r"gate .*axis of 6 .*mesh.fsdp=4"):
        tree_shardings(tree, mesh_of((2, 4, 1)), ((r"gate", PartitionSpec(None, "fsdp")),))


def test_the_table_tells_the_bytes_on_a_device():
    program = make_program(experiment((1, 8, 1)), SPEC, mesh_of((1, 8, 1)))
    (line,) = [x for x in sharding_table(program.state.params) if "mlp/fc1/kernel" in x]
    size = DEPTH * WIDTH * 4 * WIDTH * 4 / 8 / 1e6
    assert "(2, 32, 128)" in line and "None, fsdp, tensor" in line and f"{size:,.2f} MB" in line


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MeshConfig(data=-1, fsdp=-1), "at most one -1"),
        (lambda: MeshConfig(data=0), "expected positive sizes"),
        (lambda: make_mesh(MeshConfig(3, 1, 1)), "does not cover the 8 devices"),
        (lambda: make_mesh(MeshConfig(-1, 3, 1)), "does not cover the 8 devices"),
        (lambda: check_batch(12, 1, mesh_of((8, 1, 1))), "batch size 12 .* multiple of 8"),
        (lambda: check_batch(8, 2, mesh_of((2, 4, 1))), "multiple of 16"),
        (
            lambda: make_program(experiment((1, 1, 8)), SPEC, mesh_of((1, 1, 8))),
            "axis of 4 that does not divide over mesh.tensor=8",
        ),
        (lambda: start_processes("localhost:1", 2, None), "give all of"),
        (lambda: start_processes("localhost", 2, 1), "expected HOST:PORT"),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_a_coordinator_that_does_not_answer_is_named(monkeypatch):
    monkeypatch.setattr("sra_jax.distributed.launch.CONNECT_SECONDS", 0.6)
    with pytest.raises(InputError, match="process 1 got no answer from the coordinator"):
        start_processes("127.0.0.1:9", 2, 1)


def test_a_process_reads_the_rows_that_its_devices_hold():
    for shape in MESHES:
        np.testing.assert_array_equal(
            local_rows(BATCH, batch_sharding(mesh_of(shape))), np.arange(BATCH)
        )
