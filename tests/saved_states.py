"""Small training states, checkpoints of them, and ways to damage one."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sra_jax.checkpoints.store import CheckpointStore


def make_trees(seed: int, width: int = 64) -> dict:
    """A small training state whose every leaf depends on `seed`, with odd values among them."""
    keys = jax.random.split(jax.random.key(seed), 4)
    params = {
        "kernel": jax.random.normal(keys[0], (width, 2 * width)),
        "bias": jax.random.normal(keys[1], (7,), jnp.bfloat16),
        "odd": jnp.array([jnp.nan, jnp.inf, -0.0, 1e-40, seed], jnp.float32),
    }
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-4))
    _, moments = optimizer.update(params, optimizer.init(params), params)
    return {
        "step": jnp.int32(seed),
        "params": params,
        "ema": {"kernel": jax.random.normal(keys[2], (width, 2 * width))},
        "opt_state": moments,
    }


ABSTRACT = jax.eval_shape(lambda: make_trees(0))


def bits(tree) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def assert_same(restored, expected):
    assert jax.tree.structure(restored) == jax.tree.structure(expected)
    same = jax.tree.map(lambda a, b: (a.dtype, a.shape) == (b.dtype, b.shape), restored, expected)
    assert all(jax.tree.leaves(same))
    assert bits(restored) == bits(expected)


def save_all(workdir, *steps, **options) -> Path:
    with CheckpointStore(workdir, **options) as store:
        for step in steps:
            assert store.save(step, make_trees(step), {"config": {"step": step}})
    return Path(workdir) / "checkpoints"


def data_file(step_dir: Path, tree: str) -> Path:
    """The file that holds the arrays, against the small ones that describe them."""
    return max((step_dir / tree).rglob("d/*"), key=lambda path: path.stat().st_size)


def flip(fraction):
    def damage(step_dir):
        path = data_file(step_dir, "params")
        data = bytearray(path.read_bytes())
        data[int(fraction * (len(data) - 1))] ^= 0x10
        path.write_bytes(data)

    return damage


def truncate(step_dir):
    path = data_file(step_dir, "opt_state")
    os.truncate(path, path.stat().st_size // 2)


def empty(step_dir):
    shutil.rmtree(step_dir)
    step_dir.mkdir()


def change_config(step_dir):
    path = step_dir / "_CHECKPOINT_METADATA"
    path.write_text(path.read_text().replace('"config": {"step": 2}', '"config": {"step": 3}'))


DAMAGES = {
    **{f"flip at {fraction}": flip(fraction) for fraction in (0.0, 0.1, 0.5, 0.9)},
    "truncated": truncate,
    "deleted file": lambda step_dir: data_file(step_dir, "ema").unlink(),
    "deleted tree": lambda step_dir: shutil.rmtree(step_dir / "opt_state"),
    "no metadata": lambda step_dir: (step_dir / "_CHECKPOINT_METADATA").unlink(),
    "changed config": change_config,
    "empty": empty,
}


def run_child(script: str, workdir, **env) -> subprocess.Popen:
    """`script` in a process of its own, with `make_trees` and the workdir at hand."""
    start = "import sys; from saved_states import *; workdir = sys.argv[1]\n"
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "JAX_PLATFORMS": "cpu"} | env
    return subprocess.Popen(
        [sys.executable, "-c", start + script, str(workdir)],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
