"""Double precision for a block of code, without touching JAX's global settings."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def double_precision() -> AbstractContextManager[None]:
    """A context in which JAX computes in float64."""
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(True)
    from jax.experimental import enable_x64  # type: ignore[attr-defined]  # JAX before 0.8

    return enable_x64()


def to_float64(tree: Any) -> Any:
    """``tree`` with its floating-point arrays in float64 (inside `double_precision`)."""

    def widen(leaf: Any) -> Any:
        array = np.asarray(leaf)
        return jnp.asarray(array, jnp.float64) if array.dtype.kind == "f" else leaf

    return jax.tree.map(widen, tree)
