"""The Rosenbrock function from random starts (appendix C.1, Fig. 2b)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from optdyn.tasks._base import Problem

X_RANGE = (-2.0, 2.0)
Y_RANGE = (-1.0, 3.0)


def rosenbrock(point: Float[Array, " 2"]) -> Float[Array, ""]:
    """``(1 − x)² + 100 (y − x²)²``: zero at (1, 1), a curved valley elsewhere."""
    x, y = point
    return (1.0 - x) ** 2 + 100.0 * (y - x**2) ** 2


@dataclasses.dataclass(frozen=True)
class Rosenbrock:
    """One loss function, random starts: x ~ U(−2, 2), y ~ U(−1, 3)."""

    def sample(self, key: Key[Array, ""]) -> Problem:
        """Draw the start [2]."""
        low = jnp.array([X_RANGE[0], Y_RANGE[0]])
        high = jnp.array([X_RANGE[1], Y_RANGE[1]])
        return Problem(
            params=jax.random.uniform(key, (2,), minval=low, maxval=high), loss_fn=rosenbrock
        )
