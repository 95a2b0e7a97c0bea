"""Computes a digest of every leaf of a state, by which a checkpoint is verified after loading."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from sra_jax.core.errors import InputError


def layout(tree) -> dict[str, str]:
    """Returns dtype and shape of every leaf by path: `{"params/kernel": "float32[3,4]"}`.

    The leaves are arrays or `jax.ShapeDtypeStruct`s. Raises InputError if two leaves have one path.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    described = {
        jax.tree_util.keystr(path, simple=True, separator="/"): (
            f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"
        )
        for path, leaf in leaves
    }
    if len(described) != len(leaves):
        raise InputError("two leaves of the tree have the same path, rename a key that holds a '/'")
    return described


def fingerprint(tree) -> dict[str, str]:
    """Returns layout and 64-bit digest of every leaf by path, in hex.

    For example `{"params/kernel": "float32[3,4] 00c0ffee00c0ffee"}`. It is computed on the devices
    in one jitted pass; only eight bytes per leaf come to the host. The arithmetic is in integers
    and exact, so the result depends only on the values, not on mesh, sharding or machine.

    Each element, with its position, goes through a bijection of 32-bit words, and the results are
    added modulo 2^32. A second sum sends them through another bijection first. So any change
    within one element, even of one bit, is always found; swapped, shifted, zeroed or otherwise
    damaged elements are missed with probability about 2^-64. It protects against accidents, not
    against forgery. `-0.0` differs from `0.0`, and NaNs with different bits differ.

    Args:
      tree: arrays of any shape, of bool or of a dtype of at most four bytes.

    Raises:
      InputError: a leaf has more than 2^32 elements, whose positions do not fit into a word.
    """
    described = layout(tree)
    leaves = jax.tree.leaves(tree)
    for path, leaf in zip(described, leaves, strict=True):
        if leaf.size > 2**32:
            raise InputError(f"{path} has {leaf.size} elements, at most 2^32 can be checkpointed")
    sums = np.asarray(_sums(leaves)) if leaves else ()
    return {
        path: f"{text} {first:08x}{second:08x}"
        for (path, text), (first, second) in zip(described.items(), sums, strict=True)
    }


@jax.jit
def _sums(leaves: list[jax.Array]) -> jax.Array:
    """Both sums of every leaf: uint32 [leaves, 2]."""
    return jnp.stack([_leaf_sums(leaf) for leaf in leaves])


def _leaf_sums(leaf: jax.Array) -> jax.Array:
    position = _positions(leaf.shape)
    first = _mix(_words(leaf) ^ _mix(position))
    second = _mix(first + position)
    # One reduction computes both sums: two would keep `first`, as large as the leaf, in memory.
    zero, axes = np.uint32(0), tuple(range(leaf.ndim))
    return jnp.stack(lax.reduce((first, second), (zero, zero), _add_pairs, axes))


def _add_pairs(left: tuple, right: tuple) -> tuple:
    return left[0] + right[0], left[1] + right[1]


def _words(leaf: jax.Array) -> jax.Array:
    """Returns the bits of every element as uint32, in the shape of the leaf."""
    if leaf.dtype == jnp.bool_:
        return leaf.astype(jnp.uint32)
    unsigned = jnp.dtype(f"uint{8 * leaf.dtype.itemsize}")
    return lax.bitcast_convert_type(leaf, unsigned).astype(jnp.uint32)


def _positions(shape: tuple[int, ...]) -> jax.Array:
    """Returns the row-major index of every element, uint32; a reshape would move shards."""
    flat = jnp.zeros(shape, jnp.uint32)
    stride = 1
    for axis in reversed(range(len(shape))):
        flat += lax.broadcasted_iota(jnp.uint32, shape, axis) * np.uint32(stride)
        stride = stride * shape[axis] % 2**32
    return flat


def _mix(word: jax.Array) -> jax.Array:
    """The finaliser of MurmurHash3: a bijection of 32-bit words in which every bit moves half."""
    word = (word ^ (word >> 16)) * np.uint32(0x85EBCA6B)
    word = (word ^ (word >> 13)) * np.uint32(0xC2B2AE35)
    return word ^ (word >> 16)
