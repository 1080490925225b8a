"""An optimizer whose state is stored with fewer bits than it is computed with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import optax

if TYPE_CHECKING:
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
        wide = jnp.result_type(*jax.tree.leaves(gradients))
        updates, following = with_extra.update(gradients, _cast(state, wide), params, **extra)
        return updates, _cast(following, jnp.dtype(dtype))

    return optax.GradientTransformationExtraArgs(init, update)


def _cast(state: PyTree, dtype: jnp.dtype) -> PyTree:
    def cast(leaf: jax.Array) -> jax.Array:
        return leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    return jax.tree.map(cast, state)
