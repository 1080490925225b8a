"""Named, disjoint streams of random keys.

Every key in the project is ``fold_in(stream(seed, name), index)``: what one
stream draws never depends on batch sizes, chunking, device counts or resume
points, and train, tuning and test problems never share a key.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import jax

from optdyn.errors import require_positive_int

if TYPE_CHECKING:
    from jaxtyping import Array, Key

LARGEST_SEED = 2**32 - 1


def stream(seed: int, name: str) -> Key[Array, ""]:
    """The root key of the stream called ``name`` under ``seed``.

    Raises `UserError` unless the seed is an integer that 32 bits hold.
    """
    require_positive_int("seed", seed, minimum=0, maximum=LARGEST_SEED)
    return derived(jax.random.key(seed), name)


def derived(key: Key[Array, ""], name: str) -> Key[Array, ""]:
    """The key for what is called ``name`` beside all else that is drawn from ``key``."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def keys_at(root: Key[Array, ""], indices: Array) -> Key[Array, " n"]:
    """One key for each integer in ``indices``: ``fold_in(root, i)``."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(root, indices)
