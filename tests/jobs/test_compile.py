"""The dry run of TPU slices reads compiled programs rightly, and says clearly what it cannot do."""

import importlib.util
import re
import runpy
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import REPOSITORY, environment, run
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from sra_jax.config.schema import Experiment
from sra_jax.core.errors import InputError
from sra_jax.distributed.hardware import CHIPS, GIB
from sra_jax.distributed.mesh import MeshConfig, make_mesh
from sra_jax.distributed.sharding import sharding_table
from sra_jax.jobs.compile import _sampler_task, _train_task, slice_devices
from sra_jax.pods.forecast import (
    Fits,
    OutOfMemory,
    Roofline,
    make_roofline,
    parse_out_of_memory,
    rank,
)
from sra_jax.pods.hlo import Array, Program, group_size
from sra_jax.pods.slices import check_topology

CONFIG = f"--config={REPOSITORY}/configs/sit_sra.py:S/8"
LIBTPU = importlib.util.find_spec("libtpu") is not None
needs_libtpu = pytest.mark.skipif(not LIBTPU, reason="libtpu is not installed (extra tpu)")

# One computation that runs 3 x 5 times, TPU's layouts and spellings of collectives.
TEXT = """\
HloModule jit_step, is_scheduled=true, entry_computation_layout={()->f32[]}, num_partitions=8

%inner_condition (p.0: (s32[])) -> pred[] {
  %p.0 = (s32[]{:T(128)}) parameter(0)
  %i.0 = s32[]{:T(128)} get-tuple-element(%p.0), index=0
  %bound.0 = s32[]{:T(128)} constant(5)
  ROOT %less.0 = pred[]{:T(512)} compare(%i.0, %bound.0), direction=LT
}

%gather (q.0: bf16[2,128]) -> bf16[8,128] {
  %q.0 = bf16[2,128]{1,0:T(8,128)(2,1)} parameter(0)
  %all-gather.1 = bf16[8,128]{1,0:T(8,128)(2,1)S(1)} all-gather(%q.0), channel_id=3, replica_groups=[2,4]<=[8], dimensions={0}, frontend_attributes={chain_id="1"}
  ROOT %start = (bf16[2,128]{1,0}, bf16[8,128]{1,0}) custom-call(%all-gather.1), custom_call_target="AsyncCollectiveStart"
}

%gather_on (q.1: bf16[2,128]) -> bf16[8,128] {
  %q.1 = bf16[2,128]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %all-gather.2 = bf16[8,128]{1,0:T(8,128)(2,1)S(1)} all-gather(%q.1), channel_id=3, replica_groups=[2,4]<=[8], dimensions={0}, frontend_attributes={chain_id="1"}
}

%inner_body (p.1: (s32[])) -> (s32[]) {
  %p.1 = (s32[]{:T(128)}) parameter(0)
  %shard = bf16[2,128]{1,0:T(8,128)(2,1)} constant({...})
  %f.0 = (bf16[2,128]{1,0}, bf16[8,128]{1,0}) fusion(%shard), kind=kCustom, calls=%gather
  %f.1 = bf16[8,128]{1,0:S(1)} fusion(%shard), kind=kCustom, calls=%gather_on
  %gradient = bf16[64,16]{1,0:T(8,128)(2,1)} constant({...})
  %norm = f32[]{:T(128)} constant(0)
  %all-reduce.1 = (bf16[64,16]{1,0:T(8,128)(2,1)}, /*index=1*/f32[]{:T(128)}) all-reduce(%gradient, %norm), channel_id=1, replica_groups=mesh['a'=2,'b'=4] {'a','b'}, to_apply=%add, metadata={op_name="jit(step)/sum" stack_frame_id=1}
  ROOT %t.1 = (s32[]{:T(128)}) tuple(%p.1)
}

%outer_body (p.2: (s32[])) -> (s32[]) {
  %p.2 = (s32[]{:T(128)}) parameter(0)
  ROOT %while.1 = (s32[]{:T(128)}) while(%p.2), condition=%inner_condition, body=%inner_body
}

ENTRY %main (a: f32[4,256]) -> f32[4,256] {
  %a = f32[4,256]{1,0:T(4,128)} parameter(0)
  %t.2 = (s32[]{:T(128)}) tuple(%a)
  %while.2 = (s32[]{:T(128)}) while(%t.2), condition=%x, body=%outer_body, backend_config={"known_trip_count":{"n":"3"}}
  %permute = (f32[4,256]{1,0}, f32[4,256]{1,0}, u32[]) collective-permute-start(%a), channel_id=2, source_target_pairs={{0,1},{1,0}}
  %permute-done = f32[4,256]{1,0} collective-permute-done(%permute)
  %kept = f32[4,256]{1,0:T(4,128)S(1)} add(%a, %permute-done)
  ROOT %sum = f32[4,256]{1,0:T(4,128)} add(%a, %kept)
}
"""  # noqa: E501


def test_collectives_of_known_text_count_loops_and_asynchronous_ones_once():
    found = {c.kind: c for c in Program(TEXT).collectives()}
    assert len(Program(TEXT).collectives()) == len(found) == 3
    reduce, gather, permute = (
        found[kind] for kind in ("all-reduce", "all-gather", "collective-permute")
    )
    assert (reduce.count, reduce.group, reduce.source) == (15, 8, "jit(step)/sum")
    assert reduce.arrays == (Array("bf16", (64, 16)), Array("f32", ()))
    assert reduce.size == 64 * 16 * 2 + 4
    assert reduce.sent == 15 * reduce.size * 2 * 7 / 8
    assert (gather.count, gather.group, gather.size) == (15, 4, 8 * 128 * 2)
    assert gather.sent == 15 * gather.size * 3 / 4
    assert (permute.count, permute.sent) == (1, 4 * 256 * 4)


def test_text_of_something_else_is_refused():
    with pytest.raises(ValueError, match="no ENTRY computation"):
        Program("HloModule nothing\n")


@pytest.mark.parametrize(
    ("groups", "size"),
    [
        ("{{0,1,2},{3,4,5}}", 3),
        ("[4,2]<=[2,4]T(1,0)", 2),
        ("[1,16]<=[16]", 16),
        ("mesh['a'=2,'b'=4,'c'=3] {'a','c'}", 6),
        ("mesh['a'=2,'b'=8] {'b':(2)4}", 4),
        ("{}", None),
    ],
)
def test_group_size(groups, size):
    assert group_size(f", channel_id=1, replica_groups={groups}, dimensions={{0}}") == size


def mesh():
    return jax.make_mesh((2, 4), ("a", "b"), axis_types=(AxisType.Auto,) * 2)


def compiled_text(function, specs, out, *shapes):
    place = [NamedSharding(mesh(), PartitionSpec(*spec)) for spec in specs]
    jitted = jax.jit(
        function, in_shardings=place, out_shardings=NamedSharding(mesh(), PartitionSpec(*out))
    )
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return jitted.lower(*arrays).compile().as_text()


def test_collectives_of_a_compiled_scan():
    def layers(x, weights):  # a row-split product in each of 5 turns: one sum over "b" each
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0]

    specs = [("a", "b"), (None, "b", None)]
    text = compiled_text(layers, specs, ("a", "b"), (16, 32), (5, 32, 32))
    found = Program(text).collectives()
    assert {c.kind for c in found} <= {"all-reduce", "reduce-scatter"}
    assert {c.group for c in found} == {4}
    assert sum(c.count * c.size for c in found) == 5 * (16 // 2) * 32 * 4


@pytest.mark.parametrize(("out", "kind"), [((), "all-gather"), ((None, "b"), "all-to-all")])
def test_collectives_of_a_compiled_resharding(out, kind):
    (found,) = Program(compiled_text(lambda x: x + 1, [("b",)], out, (64, 32))).collectives()
    assert (found.kind, found.group, found.count) == (kind, 4, 1)
    whole = 64 * 32 * 4
    assert found.size == (whole if kind == "all-gather" else whole / 4)


def test_memory_traffic_of_known_text():
    # Entry: the copy is made by the interconnect; %kept reads two arrays and stays on the chip,
    # %sum reads one and writes one. Loop: the reduction of 2052 bytes in and out, and the two
    # fusions, which read their shard; the first one writes it and the gathered whole.
    once, array = 2 * 2052 + 2 * 512 + 512 + 2048, 4 * 256 * 4
    assert Program(TEXT).memory_traffic() == 15 * once + (1 + 1 + 2 + 2) * array


def test_memory_traffic_counts_only_the_slices_of_a_stack():
    def pick(x, stack):
        return jax.lax.scan(lambda x, w: (x + w, None), x, stack)[0]

    text = jax.jit(pick).lower(np.zeros((512, 8)), np.zeros((100, 512, 8))).compile().as_text()
    stack = 100 * 512 * 8 * 4
    assert stack <= Program(text).memory_traffic() < 5 * stack  # and not 100 times


def test_roofline_by_hand():
    v5e = CHIPS["TPU v5 lite"]
    roofline = make_roofline(v5e, flops=19.7e12, traffic=163.8e9, sent=10e9)
    np.testing.assert_allclose(roofline, (0.1, 0.2, 0.05))
    assert (roofline.bound, roofline.seconds) == ("memory", roofline.memory)
    np.testing.assert_allclose(roofline.fast, 0.2)  # 0.1 / 0.60 hides behind the memory
    np.testing.assert_allclose(roofline.slow, 0.1 / 0.35 + 0.05)
    assert Roofline(3.0, 2.0, 1.0).bound == "compute"
    assert Roofline(1.0, 2.0, 3.0).bound == "interconnect"


def test_ranking_puts_what_fits_first_and_the_fastest_before():
    slow, fast = (Fits(0, 0, {}, Roofline(t, 0.0, 0.0)) for t in (2.0, 1.0))
    near, far = OutOfMemory(20, 16), OutOfMemory(99, 16)
    assert sorted([far, slow, near, fast], key=rank) == [fast, slow, near, far]


def test_refusals_are_parsed():
    today = "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
    today += "temporaries (27.04G) exceeds available HBM (15.75G)."
    assert parse_out_of_memory(today) == OutOfMemory(27.04 * GIB, 15.75 * GIB)
    before = "Ran out of memory in memory space hbm. Used 38.30G of 15.75G hbm. Exceeded by 22G"
    assert parse_out_of_memory(before) == OutOfMemory(38.3 * GIB, 15.75 * GIB)
    assert parse_out_of_memory("INTERNAL: something else") is None


@pytest.mark.parametrize("name", ["v5e:3x3", "v5e:4x4x4", "v5e-16", "v5litepod:4x4", "", "v9:2x2"])
def test_unknown_topologies_list_those_that_exist(name):
    with pytest.raises(InputError) as error:
        check_topology(name)
    assert repr(name) in str(error.value)
    assert "v5e: 2x2 2x4 4x4" in str(error.value)
    assert ("v5p: 2x2x1" in str(error.value)) == (not name.startswith("v5e:"))


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["--topology=v5e:5x5"], ["'v5e:5x5'", "4x4"]),
        ([], ["--topology is missing"]),
        (["--topology=v5e:2x2", "--sweep", "--sampler"], ["--sweep", "--sampler"]),
        (["--topology=v5e:2x2", "--sampler", "--sampler_batch=0"], ["sampler batch is 0"]),
    ],
)
def test_bad_flags_are_refused_in_one_line(flags, parts):
    result = run("compile", [CONFIG, *flags])
    assert result.code == 2, result
    (line,) = result.err.splitlines()
    assert all(part in line for part in parts), line


def test_missing_libtpu_is_told_in_one_line(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=re.escape("pip install -e .[tpu]")):
        slice_devices("v5e:4x4")


@pytest.mark.parametrize("config", ["sit_sra", "dit_sra"])
def test_both_programs_are_traced_and_counted_on_any_mesh(config):
    """A TPU's compiler is needed only after this."""
    path = REPOSITORY / "configs" / f"{config}.py"
    config = runpy.run_path(str(path))["get_config"]("S/8")
    config.sampling.steps = "10"
    experiment, mesh = Experiment.from_dict(config.to_dict()), make_mesh(MeshConfig(fsdp=2))
    step, sampler = _train_task(experiment, mesh), _sampler_task(experiment, mesh, 8)
    for task in (step, sampler):
        assert "fsdp" in "".join(sharding_table(task.held["params"]))
        assert "stablehlo" in task.lower().as_text()
    assert step.useful / 3 * 10 < sampler.flops < step.useful / 3 * 20  # two with guidance


@needs_libtpu
def test_a_tiny_train_step_compiles_for_a_tpu():
    flags = [f"--config.{field}" for field in ("model.depth=2", "model.width=128", "mesh.fsdp=2")]
    flags += [f"--config.{field}" for field in ("model.num_heads=2", "train.batch_size=8")]
    flags += ["--config.method.sra.student_block=1", "--config.method.sra.teacher_block=2"]
    result = run("compile", [CONFIG, "--topology=v5e:2x2", *flags], JAX_PLATFORMS="")
    assert (result.code, result.err) == (0, ""), result
    for part in ("bfloat16", "fits     yes", "of 15.75 GiB", "roofline", "estimate"):
        assert part in result.out
    assert re.search(r"network  0\.\d+ GB sent by a device: .*all-gather", result.out)
    assert re.search(r"blocks/mlp/fc1/kernel .*None, fsdp, tensor", result.out)


@needs_libtpu
def test_a_tiny_sampler_compiles_for_a_tpu():
    flags = ["--config.model.depth=1", "--config.model.width=64", "--config.model.num_heads=1"]
    flags += ["--config.method.sra.student_block=1", "--config.method.sra.teacher_block=1"]
    flags += ["--sampler", "--sampler_batch=8", "--config.sampling.steps=10"]
    result = run("compile", [CONFIG, "--topology=v4:2x2x1", *flags])
    assert (result.code, result.err) == (0, ""), result
    assert "compiling the sampler for 4 TPU v4" in result.out and "estimate" in result.out


@pytest.mark.slow
@needs_libtpu
def test_a_sweep_ranks_all_that_divides():
    flags = ["--config.model.depth=1", "--config.model.width=64", "--config.model.num_heads=2"]
    flags += ["--config.method.sra.student_block=1", "--config.method.sra.teacher_block=1"]
    result = run("compile", [CONFIG, "--topology=v5e:2x2", *flags, "--sweep"])
    assert (result.code, result.err) == (0, ""), result
    ranked = result.out.split("best first")[1].splitlines()[1:]
    assert len(ranked) == 4 * 3
    slow = [int(re.search(r"to ([\d,]+) ms", line)[1]) for line in ranked]
    assert slow == sorted(slow)
    assert "12/12" in result.out and "0s left" in result.out


@needs_libtpu
def test_a_model_too_large_is_reported_not_raised():
    flags = ["--topology=v5e:2x2", "--config.train.batch_size=65536", "--config.model.patch_size=2"]
    result = run("compile", [CONFIG, *flags])
    assert result.code == 0, result
    assert re.search(r"fits     no: needs [\d,.]+ of 15.75 GiB", result.out)


@needs_libtpu
def test_all_topologies_are_known_to_libtpu():
    program = """
import os
from sra_jax.cli.compile import ENVIRONMENT
os.environ.update(ENVIRONMENT)
from sra_jax.distributed.mesh import MeshConfig, make_mesh
from sra_jax.distributed.sharding import sharding_table
from sra_jax.jobs.compile import _sampler_task, _train_task, slice_devices
from sra_jax.distributed.hardware import SLICES, chip_of
for family, sizes in SLICES.items():
    for size in sizes:
        assert chip_of(slice_devices(f"{family}:{size}")[0]) is not None
"""
    subprocess.run([sys.executable, "-c", program], env=environment(), check=True)
