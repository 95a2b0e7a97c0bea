"""Checkpoints come back bit for bit, or are seen to be damaged and passed over."""

import contextlib
import logging
import os
import random
import resource
import shutil
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from saved_states import (
    ABSTRACT,
    DAMAGES,
    assert_same,
    empty,
    make_trees,
    run_child,
    save_all,
    truncate,
)

from sra_jax.checkpoints import store as checkpoint
from sra_jax.checkpoints.store import CheckpointError, CheckpointStore
from sra_jax.core.errors import InputError, RunError

# Orbax abandons its reading threads when a file is damaged; what they say late is not ours.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def test_round_trip_is_bit_exact(tmp_path):
    with CheckpointStore(tmp_path) as store:
        metadata = {"config": {"lr": 1e-4, "shape": (2, 3)}, "loss": float("nan")}
        assert store.save(5, make_trees(5), metadata)
        step, restored = store.restore(ABSTRACT)
    assert step == 5
    assert_same(restored, make_trees(5))
    read = CheckpointStore(tmp_path).metadata()
    assert read["config"] == {"lr": 1e-4, "shape": [2, 3]}


def test_saved_arrays_may_be_donated_at_once(tmp_path):
    change = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf * 3 + 1, tree), donate_argnums=0)
    trees = make_trees(1, width=512)
    with CheckpointStore(tmp_path) as store:
        store.save(1, trees, {})
        jax.block_until_ready(change(trees))
        _, restored = store.restore(jax.eval_shape(lambda: make_trees(0, width=512)))
    assert_same(restored, make_trees(1, width=512))


def test_one_tree_loads_without_the_others(tmp_path):
    directory = save_all(tmp_path, 1)
    for name in ("opt_state", "params"):
        shutil.rmtree(directory / "1" / name)
    step, restored = CheckpointStore(tmp_path).restore({"ema": ABSTRACT["ema"]})
    assert step == 1
    assert_same(restored, {"ema": make_trees(1)["ema"]})


def test_names_what_was_saved(tmp_path):
    save_all(tmp_path, 1)
    with CheckpointStore(tmp_path) as store:
        assert store.names() == store.names(1) == {"step", "params", "ema", "opt_state"}
        store.save(2, {"ema": make_trees(2)["ema"]}, {})
    assert CheckpointStore(tmp_path).names() == {"ema"}
    with pytest.raises(CheckpointError, match="no step 3"):
        CheckpointStore(tmp_path).names(3)


def test_keeps_the_newest_and_the_milestones(tmp_path):
    save_all(tmp_path, 10, 20, 30, 40, 50, keep=2, keep_every=20)
    assert CheckpointStore(tmp_path).steps() == [20, 40, 50]
    assert CheckpointStore(tmp_path).latest_step() == 50
    with pytest.raises(InputError, match="keep=0 keeps no checkpoint"):
        CheckpointStore(tmp_path, keep=0)


def test_nothing_is_deleted_before_the_next_is_complete(tmp_path, disk_full):
    store = CheckpointStore(tmp_path, keep=1)
    store.save(1, make_trees(1), {})
    store.wait()
    with disk_full():
        store.save(2, make_trees(2), {})
        with pytest.raises(RunError) as failure:
            store.wait()
    message = str(failure.value)
    assert message.startswith(f"saving step 2 to {tmp_path}/checkpoints failed (")
    assert "), the last good step is 1: make room or mend the disk" in message
    assert "\n" not in message
    assert_same(store.restore(ABSTRACT)[1], make_trees(1))
    assert store.save(2, make_trees(2), {})  # once there is room again
    store.close()
    assert os.listdir(store.directory) == ["2"]


def test_a_failed_save_is_told_by_the_next(tmp_path, disk_full):
    store = CheckpointStore(tmp_path)
    with disk_full():
        store.save(1, make_trees(1), {})
        with pytest.raises(RunError, match=r"saving step 1 .* no step is saved yet"):
            store.save(2, make_trees(2), {})


def test_a_removed_directory_is_told(tmp_path):
    store = CheckpointStore(tmp_path)
    store.save(1, make_trees(1), {})
    store.wait()
    store.directory.rename(tmp_path / "away")
    with pytest.raises(RunError, match=r"saving step 2 .*the directory was removed.* no step is"):
        store.save(2, make_trees(2), {})


def test_the_error_that_ended_the_run_is_not_replaced(tmp_path, disk_full, caplog):
    with disk_full(), pytest.raises(ZeroDivisionError), CheckpointStore(tmp_path) as store:
        store.save(1, make_trees(1), {})
        raise ZeroDivisionError
    assert "saving step 1" in caplog.text


@pytest.fixture
def disk_full():
    """Within it, no file grows beyond 16 kB."""

    @contextlib.contextmanager
    def limit():
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (16_000, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limit


def own_messages(caplog) -> list[str]:
    return [record.message for record in caplog.records if record.name == checkpoint.__name__]


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_checkpoint_is_passed_over_and_replaced(tmp_path, damage, caplog):
    damage(save_all(tmp_path, 1, 2) / "2")
    store = CheckpointStore(tmp_path, keep=2)
    with caplog.at_level(logging.WARNING, logger=checkpoint.__name__):
        step, restored = store.restore(ABSTRACT)
        store.restore(ABSTRACT)
    assert step == 1
    assert_same(restored, make_trees(1))
    (warning,) = own_messages(caplog)
    assert f"{tmp_path}/checkpoints/2 is damaged and not used: " in warning
    with pytest.raises(CheckpointError, match=r"no undamaged checkpoint in .* \(step 2: "):
        store.restore(ABSTRACT, step=2)

    assert not store.save(1, make_trees(7), {})
    assert store.save(2, make_trees(2), {})
    step, restored = store.restore(ABSTRACT)
    assert step == 2
    assert_same(restored, make_trees(2))
    store.close()
    assert store.steps() == [1, 2]


def test_damage_names_the_leaf(tmp_path, monkeypatch):
    save_all(tmp_path, 1)
    store = CheckpointStore(tmp_path)
    load = checkpoint.ocp.load_checkpointables

    def load_wrong(*args):
        trees = load(*args)
        trees["params"]["kernel"] = trees["params"]["kernel"].at[3, 4].add(1e-3)
        return trees

    monkeypatch.setattr(checkpoint.ocp, "load_checkpointables", load_wrong)
    with pytest.raises(CheckpointError, match="differ from the saved ones in params/kernel"):
        store.restore(ABSTRACT)


def test_damaged_checkpoints_do_not_count_as_kept(tmp_path):
    empty(save_all(tmp_path, 1, 2, 3) / "3")
    with CheckpointStore(tmp_path, keep=2) as store:
        assert store.restore(ABSTRACT)[0] == 2
        assert store.metadata() == {"config": {"step": 2}}
        for step, left in {4: [2, 4], 5: [4, 5]}.items():
            store.save(step, make_trees(step), {})
            store.wait()
            assert store.steps() == left


def test_says_when_there_is_nothing_good(tmp_path):
    store = CheckpointStore(tmp_path / "new")
    assert store.steps() == [] and store.latest_step() is None
    with pytest.raises(CheckpointError, match=r"no checkpoint in .*/new/checkpoints"):
        store.restore(ABSTRACT)
    assert not (tmp_path / "new").exists()
    directory = save_all(tmp_path, 1, 2)
    truncate(directory / "1")
    empty(directory / "2")
    with pytest.raises(CheckpointError, match=r"\(step 2: its metadata is missing; step 1: .*\)"):
        CheckpointStore(tmp_path).restore(ABSTRACT)
    with pytest.raises(CheckpointError, match=r"no step 3 in .*, expected one of \[1, 2\]"):
        CheckpointStore(tmp_path).restore(ABSTRACT, step=3)


def test_another_model_is_refused_in_one_line(tmp_path):
    save_all(tmp_path, 1, 2)
    shape = jax.ShapeDtypeStruct((3,), jnp.float32)
    other = {"ema": {"kernel": shape, "scale": shape}, "step": ABSTRACT["step"]}
    with pytest.raises(CheckpointError) as refusal:
        CheckpointStore(tmp_path).restore(other)
    assert "step 2 in" in str(refusal.value)
    assert (
        "ema/kernel was float32[64,128], is float32[3]; ema/scale was None, is float32[3]"
        in str(refusal.value)
    )
    with pytest.raises(CheckpointError, match="head was None, is"):
        CheckpointStore(tmp_path).restore({"head": shape})


def test_trees_that_are_optional_may_be_missing(tmp_path):
    save_all(tmp_path, 1)
    store, head = CheckpointStore(tmp_path), {"scale": jax.ShapeDtypeStruct((3,), jnp.float32)}
    step, trees = store.restore({"head": head, "ema": ABSTRACT["ema"]}, optional=("head",))
    assert step == 1 and trees.keys() == {"ema"}
    assert store.restore({"head": head}, optional=("head",)) == (1, {})


def test_a_newer_format_is_refused_and_not_replaced(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "FORMAT_VERSION", 2)
    save_all(tmp_path, 1)
    monkeypatch.undo()
    store = CheckpointStore(tmp_path)
    for refused in (lambda: store.restore(ABSTRACT), lambda: store.save(1, make_trees(1), {})):
        with pytest.raises(
            CheckpointError, match="format 2, this version of sra_jax reads up to 1"
        ):
            refused()


def test_metadata_must_be_json(tmp_path):
    with pytest.raises(RunError, match=r"saving step 1 .* not JSON serializable"):
        CheckpointStore(tmp_path).save(1, make_trees(1), {"config": object()})


def test_orbax_is_quiet(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        save_all(tmp_path, 1, 2)
        CheckpointStore(tmp_path).restore(ABSTRACT)
    assert caplog.messages == []


def test_moves_between_one_device_and_eight(tmp_path):
    save_all(tmp_path, 1)
    child = run_child(
        """
mesh = jax.make_mesh((4, 2), ("data", "fsdp"))
def place(leaf):
    spec = jax.P("fsdp", "data") if leaf.ndim == 2 else jax.P()
    sharding = jax.sharding.NamedSharding(mesh, spec)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
with CheckpointStore(workdir) as store:
    _, restored = store.restore(jax.tree.map(place, ABSTRACT))
    kernel = restored["opt_state"][1][0].mu["kernel"]
    assert kernel.sharding.shard_shape(kernel.shape) == (32, 32), kernel.sharding
    assert_same(restored, make_trees(1))
    store.save(2, restored, {})
""",
        tmp_path,
        XLA_FLAGS=f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8",
    )
    assert child.communicate()[1] == b"" and child.returncode == 0
    step, restored = CheckpointStore(tmp_path).restore(ABSTRACT)
    assert step == 2
    assert_same(restored, make_trees(1))


@pytest.mark.parametrize(("columns", "cut"), [(2**10, False), (2**19, True)])
def test_only_what_is_large_is_cut_for_the_devices_that_hold_it(tmp_path, caplog, columns, cut):
    """Cutting takes a program for each shape and device, which the first save would wait for."""
    whole = jax.NamedSharding(jax.make_mesh((8,), ("data",)), jax.P())
    trees = {"params": jax.device_put(np.arange(8.0 * columns, dtype=np.float32), whole)}
    with CheckpointStore(tmp_path) as store, jax.log_compiles():
        store.save(1, trees, {})
    assert any("jit(slice)" in message for message in caplog.messages) == cut
    assert any("jit(_sums)" in message for message in caplog.messages)  # the fingerprint's
    abstract = {"params": jax.ShapeDtypeStruct((8 * columns,), np.float32, sharding=whole)}
    assert_same(CheckpointStore(tmp_path).restore(abstract)[1], trees)


def test_a_killed_save_leaves_the_step_before(tmp_path, caplog):
    abstract = jax.eval_shape(lambda: make_trees(0, width=256))
    saves = """
with CheckpointStore(workdir) as store:
    for step in range((store.latest_step() or 0) + 1, 1000):
        store.save(step, make_trees(step, width=256), {})
"""
    for delay in [random.Random(os.getpid()).uniform(0, 0.1) for _ in range(3)]:
        newest = CheckpointStore(tmp_path).latest_step() or 0
        child = run_child(saves, tmp_path)
        running = tmp_path / "checkpoints" / f"{newest + 2}.orbax-checkpoint-tmp"
        while not running.exists():
            assert child.poll() is None, child.communicate()[1]
            time.sleep(0.001)
        time.sleep(delay)
        child.send_signal(signal.SIGKILL)
        child.communicate()
        step, restored = CheckpointStore(tmp_path).restore(abstract)
        assert step > newest
        assert_same(restored, make_trees(step, width=256))
    with CheckpointStore(tmp_path) as store:
        store.save(step + 1, make_trees(0), {})
    assert not list((tmp_path / "checkpoints").glob("*tmp*"))
    assert caplog.messages == []
