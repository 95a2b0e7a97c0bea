"""The digest against an independent one in numpy, on one device and on eight."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sra_jax.checkpoints.fingerprint import fingerprint, layout
from sra_jax.core.errors import InputError


def oracle(array) -> str:
    """The documented digest in Python integers, element by element."""

    def mix(word):
        word = (word ^ word >> 16) * 0x85EBCA6B % 2**32
        word = (word ^ word >> 13) * 0xC2B2AE35 % 2**32
        return word ^ word >> 16

    array = np.asarray(array)
    words = array.reshape(-1).view(f"u{array.dtype.itemsize}").tolist()
    first = [mix(word ^ mix(position)) for position, word in enumerate(words)]
    second = [mix((word + position) % 2**32) for position, word in enumerate(first)]
    return f"{sum(first) % 2**32:08x}{sum(second) % 2**32:08x}"


def digest(array) -> str:
    (text,) = fingerprint(array).values()
    return text.split()[1]


def random(shape, dtype, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape) * 100).astype(dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int32", "uint8", "bool"])
@pytest.mark.parametrize("shape", [(), (1,), (17,), (3, 5), (2, 3, 4), (0, 3)])
def test_agrees_with_numpy(dtype, shape):
    array = random(shape, dtype)
    assert digest(array) == oracle(array)


def test_names_paths_dtypes_and_shapes():
    tree = {"a": (jnp.zeros((2, 3)), jnp.int32(1)), "b": jnp.ones(4, jnp.bfloat16), "c": ()}
    assert layout(tree) == {"a/0": "float32[2,3]", "a/1": "int32[]", "b": "bfloat16[4]"}
    assert layout(jax.eval_shape(lambda: tree)) == layout(tree)
    assert [text.split()[0] for text in fingerprint(tree).values()] == [*layout(tree).values()]
    assert fingerprint({}) == {}


def test_every_single_flipped_bit_is_seen():
    words = np.asarray(random((5,), jnp.float32)).view(np.uint32)
    flipped = [
        words ^ (np.uint32(1 << bit) * (np.arange(5) == i)) for i in range(5) for bit in range(32)
    ]
    tree = {str(n): jnp.asarray(w.astype(np.uint32)) for n, w in enumerate([words, *flipped])}
    assert len(set(fingerprint(tree).values())) == 1 + 5 * 32


@pytest.mark.parametrize(
    "damage",
    [
        lambda x: x.at[0].set(x[1]).at[1].set(x[0]),
        lambda x: jnp.roll(x, 1),
        lambda x: x.at[:2].multiply(-1),
        lambda x: x.at[4:].set(0),
        lambda x: x[::-1],
    ],
    ids=["swap", "shift", "two signs", "zeroed half", "reversed"],
)
def test_damage_to_several_words_is_seen(damage):
    # Opposite neighbours: their swap changes two sign bits, which a weighted sum does not see.
    array = jnp.array([1.5, -1.5, 2.25, 3.0, 4.0, 5.0, 6.0, 7.0])
    assert digest(damage(array)) != digest(array)


def test_signs_of_zero_and_shape_count():
    assert digest(jnp.float32(-0.0)) != digest(jnp.float32(0.0))
    assert fingerprint(jnp.zeros((2, 3))) != fingerprint(jnp.zeros((3, 2)))


def test_eight_devices_agree_with_one():
    script = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from sra_jax.checkpoints.fingerprint import fingerprint
assert jax.device_count() == 8
tree = {
    "a": jnp.asarray(np.random.default_rng(0).normal(size=(8, 6)), jnp.float32),
    "b": jnp.arange(32, dtype=jnp.bfloat16).reshape(4, 8),
    "c": jnp.int32(7),
}
specs = {"a": P("data", "fsdp"), "b": P(None, ("data", "fsdp")), "c": P()}
for kind in (AxisType.Auto, AxisType.Explicit):
    mesh = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(kind, kind))
    put = lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec))
    assert fingerprint(jax.tree.map(put, tree, specs)) == fingerprint(tree)
"""
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", script], check=True, env=os.environ | flags)


def test_refuses_what_it_cannot_tell_apart():
    with pytest.raises(InputError, match="same path"):
        layout({"a": {"b": jnp.zeros(1)}, "a/b": jnp.zeros(1)})
    with pytest.raises(InputError, match=r"a has 8589934592 elements, at most 2\^32"):
        fingerprint({"a": jax.ShapeDtypeStruct((2**17, 2**16), jnp.int8)})
