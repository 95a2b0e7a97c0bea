"""Converts files of weights in this process, and looks at what comes out."""

import jax
import numpy as np

from sra_jax.jobs.convert import ConvertRequest, convert
from sra_jax.run import directory as workdirs


def converted(source, out, **choices):
    """Converts in this process."""
    if not str(out).endswith((".pt", ".safetensors")):
        choices = {"num_heads": 4} | choices
    convert(ConvertRequest(str(source), str(out), **choices))
    return out


def loaded(workdir, weights="ema"):
    trained = workdirs.load_model(str(workdir), weights)
    return trained, jax.tree.map(np.asarray, trained.params)


def assert_same_tree(tree, expected):
    assert jax.tree.structure(tree) == jax.tree.structure(expected)
    for array, other in zip(jax.tree.leaves(tree), jax.tree.leaves(expected), strict=True):
        assert array.dtype == np.float32 and array.tobytes() == np.asarray(other).tobytes()
