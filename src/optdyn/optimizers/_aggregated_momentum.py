"""Aggregated momentum: momentum with several timescales."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

from optdyn.errors import UserError
from optdyn.optimizers._state_precision import compute_in


class AggregatedMomentumState(NamedTuple):
    """Velocities: each parameter's array with a last axis of length K."""

    velocities: PyTree[Float[Array, "... K"]]


def aggregated_momentum(
    alpha: Sequence[float] | Float[Array, " K"], beta: Sequence[float] | Float[Array, " K"]
) -> optax.GradientTransformation:
    """``v_j ← β_j v_j + α_j g``, ``Δx = −Σ_j v_j`` (AggMo, Lucas et al. 2018).

    ``alpha`` [K]: learning rates; ``beta`` [K]: real momentum coefficients (both may
    be traced). Lucas et al.'s form has α_j = learning rate / K for every j. Velocities are
    at least float32.

    >>> tx = aggregated_momentum([0.1, 0.2], [0.0, 0.5])
    >>> updates, state = tx.update(jnp.ones(2), tx.init(jnp.zeros(2)))
    >>> state.velocities.shape
    (2, 2)

    Raises `UserError` unless alpha and beta are of the same length, at least 1.
    """
    shapes = np.shape(alpha), np.shape(beta)
    if shapes[0] != shapes[1] or len(shapes[0]) != 1 or shapes[0] == (0,):
        raise UserError(
            f"alpha, beta: shapes {shapes[0]} and {shapes[1]} are not allowed "
            "(one learning rate for each momentum, at least one)"
        )

    def init(params: PyTree) -> AggregatedMomentumState:
        return AggregatedMomentumState(
            jax.tree.map(lambda p: jnp.zeros((*p.shape, *shapes[0]), p.dtype), params)
        )

    def update(
        gradients: PyTree, state: AggregatedMomentumState, params: PyTree | None = None
    ) -> tuple[PyTree, AggregatedMomentumState]:
        del params

        def advance(g: Float[Array, "..."], v: Float[Array, "... K"]) -> Float[Array, "... K"]:
            rates, momenta = (
                jnp.broadcast_to(jnp.asarray(a, v.dtype), v.shape) for a in (alpha, beta)
            )
            return momenta * v + rates * g[..., None]

        velocities = jax.tree.map(advance, gradients, state.velocities)
        updates = jax.tree.map(lambda v: -jnp.sum(v, axis=-1), velocities)
        return updates, AggregatedMomentumState(velocities)

    return compute_in(jnp.float32, optax.GradientTransformation(init, update))
