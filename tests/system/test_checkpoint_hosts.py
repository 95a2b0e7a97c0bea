"""Two processes agree on the checkpoint they go on from, whichever of them sees the damage."""

import shutil

import pytest
from commands import free_address
from saved_states import DAMAGES, run_child, save_all

RESTORE = """
import os
rank, sharded = (int(os.environ[name]) for name in ("RANK", "SHARDED"))
jax.distributed.initialize(os.environ["ADDRESS"], 2, rank)
mesh = jax.make_mesh((2,), ("fsdp",))
def place(leaf):
    spec = jax.P("fsdp") if leaf.ndim == 2 else jax.P()
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=jax.NamedSharding(mesh, spec))
asked = jax.tree.map(place, ABSTRACT) if sharded else ABSTRACT
store = CheckpointStore(workdir)
step, restored = store.restore(asked)
expected = make_trees(step)
for found, whole in zip(jax.tree.leaves(restored), jax.tree.leaves(expected), strict=True):
    for shard in found.addressable_shards:
        assert np.asarray(shard.data).tobytes() == np.asarray(whole)[shard.index].tobytes()
assert store.metadata(step) == {"config": {"step": step}}
print("restored", step, flush=True)
"""


def restore_in_two(workdirs, sharded):
    """What the processes say, one for each workdir, and how they end."""
    shared = {"ADDRESS": free_address(), "SHARDED": str(int(sharded))}
    children = [
        run_child(RESTORE, workdir, RANK=str(rank), **shared)
        for rank, workdir in enumerate(workdirs)
    ]
    return [(*child.communicate(timeout=120), child.returncode) for child in children]


@pytest.mark.parametrize(
    "damage, sharded, seen_by",
    [("truncated", True, 1), ("no metadata", True, 0), ("flip at 0.5", False, 1)],
)
def test_damage_that_one_process_sees_is_damage_for_all(tmp_path, damage, sharded, seen_by):
    workdirs = [tmp_path / "0", tmp_path / "1"]  # a disk of its own for each
    save_all(workdirs[0], 1, 2)
    shutil.copytree(*workdirs)
    DAMAGES[damage](workdirs[seen_by] / "checkpoints" / "2")
    for rank, (out, err, code) in enumerate(restore_in_two(workdirs, sharded)):
        err = err.decode()
        assert code == 0 and out.decode().endswith("restored 1\n"), err
        assert "checkpoints/2 is damaged and not used" in err
        assert (f"process {seen_by} cannot read it" in err) == (rank != seen_by)
