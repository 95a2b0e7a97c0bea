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
    """The run's model, and the trunk's parameters."""
    trained = workdirs.load_model(str(workdir), weights)
    return trained, jax.tree.map(np.asarray, trained.params)


def loaded_head(workdir, weights="ema", step=0):
    """The parameters of SRA's head; None if the run does not train with SRA."""
    sra = workdirs.load_method(str(workdir), "sra", weights, step)
    return sra and jax.tree.map(np.asarray, sra[1])


def assert_same_tree(tree, expected):
    assert jax.tree.structure(tree) == jax.tree.structure(expected)
    for array, other in zip(jax.tree.leaves(tree), jax.tree.leaves(expected), strict=True):
        assert array.dtype == np.float32 and array.tobytes() == np.asarray(other).tobytes()
