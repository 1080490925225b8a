"""Double precision for a block of code, without touching JAX's global settings."""

from __future__ import annotations

import os
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


def use_exact_products() -> None:
    """Have accelerators multiply float32 matrices as float32, unless the user chose otherwise.

    By default JAX lets them round the operands (to TensorFloat-32 on NVIDIA's). The choice is
    the environment variable ``JAX_DEFAULT_MATMUL_PRECISION``. Without an accelerator
    nothing changes.
    """
    if "JAX_DEFAULT_MATMUL_PRECISION" not in os.environ and jax.default_backend() != "cpu":
        jax.config.update("jax_default_matmul_precision", "float32")


def to_float64(tree: Any) -> Any:
    """``tree`` with its floating-point arrays in float64 (inside `double_precision`)."""

    def widen(leaf: Any) -> Any:
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            return leaf
        return jnp.asarray(np.asarray(leaf), jnp.float64)

    return jax.tree.map(widen, tree)
