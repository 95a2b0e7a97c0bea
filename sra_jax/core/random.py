"""Every random draw is a pure function of (seed, stream, step), and of the position in the batch.

No generator is kept anywhere: resuming needs no saved state, and the draws are those of the global
batch however it is split over hosts, devices or microbatches.
"""

import zlib

import jax


def stream_key(seed: int, stream: str, step: jax.Array | int = 0) -> jax.Array:
    """The key of one named stream at one step; two names never share a key."""
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(stream.encode()))
    return jax.random.fold_in(key, step)
