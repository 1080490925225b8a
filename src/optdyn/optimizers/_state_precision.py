"""Optimizers whose state is stored, or computed, in another type than their gradients'."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

STATE_DTYPES = ("float32", "bfloat16")


def store_state_in(dtype: str, tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """``tx`` with its state rounded to ``dtype`` after each step.

    ``"float32"`` is ``tx`` as it is. Otherwise the state is widened to the gradients'
    type before each step, so that whatever the step sums is summed in that type.
    """
    if dtype == "float32":
        return tx

    with_extra = optax.with_extra_args_support(tx)

    def init(params: PyTree) -> PyTree:
        return _cast(tx.init(params), jnp.dtype(dtype))

    def update(
        gradients: PyTree, state: PyTree, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, PyTree]:
        wide = jnp.result_type(dtype, *jax.tree.leaves(gradients))
        updates, following = with_extra.update(gradients, _cast(state, wide), params, **extra)
        return _like(updates, gradients), _cast(following, jnp.dtype(dtype))

    return optax.GradientTransformationExtraArgs(init, update)


def compute_in(dtype: jnp.dtype, tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """``tx`` on gradients and parameters widened to ``dtype``; updates are as narrow as gradients.

    Wider gradients stay as they are. In bfloat16 a coefficient of 0.999 would be 1.
    """

    def widened(tree: PyTree) -> PyTree:
        return jax.tree.map(
            lambda x: jnp.asarray(x, jnp.promote_types(jnp.result_type(x), dtype)), tree
        )

    def init(params: PyTree) -> PyTree:
        return tx.init(widened(params))

    def update(
        gradients: PyTree, state: PyTree, params: PyTree | None = None
    ) -> tuple[PyTree, PyTree]:
        updates, following = tx.update(widened(gradients), state, widened(params))
        return _like(updates, gradients), following

    return optax.GradientTransformation(init, update)


def _cast(state: PyTree, dtype: jnp.dtype) -> PyTree:
    def cast(leaf: jax.Array) -> jax.Array:
        return leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    return jax.tree.map(cast, state)


def _like(updates: PyTree, gradients: PyTree) -> PyTree:
    """``updates`` in the types of ``gradients``."""
    return jax.tree.map(lambda u, g: u.astype(jnp.result_type(g)), updates, gradients)
