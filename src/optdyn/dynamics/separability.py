"""Does an optimizer treat every component of the parameters by itself?"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optdyn.errors import UserError, require_positive_int
from optdyn.precision import double_precision
from optdyn.random_streams import stream

if TYPE_CHECKING:
    from jaxtyping import Array, Float, PyTree

# Norm clipping is silent on small gradients: look at every order of magnitude.
GRADIENT_SCALES = (1e-6, 1e-3, 1.0, 1e3, 1e6)
# Step sizes estimated from norms need some steps to move off their first guess.
STEPS = 30
TOLERANCE = 1e-9


@functools.lru_cache(maxsize=16)  # every analysis of one optimizer asks again
def cross_component_response(tx: optax.GradientTransformation, n: int = 3) -> float:
    """How much one component's gradient and value change the updates of the others.

    The off-diagonal part of the update's finite-difference Jacobian: 30 steps on a
    matrix [n, n] (some optimizers couple matrices alone), run twice with the history of
    one component altered; the largest change in any other component's updates,
    relative to the largest update, over gradients of magnitude 1e-6 … 1e6. Zero for a
    component-wise optimizer.

    Raises `UserError` when ``tx.update`` needs more than gradients, state and parameters.
    """
    require_positive_int("n", n, minimum=2)
    with double_precision():
        draws = np.asarray(jax.random.normal(stream(0, "componentwise"), (STEPS, n, n)))
        # Gradients that keep their direction: estimated step sizes only grow on those.
        directions = draws[:1] + 0.3 * draws
        start = np.cos(7.0 * draws[0])
        altered = np.ones((n, n))
        altered[0, 0] = -3.0

        @jax.jit
        def updates(start: Array, gradients: Array) -> Array:
            def advance(carry: PyTree, gradient: Array) -> tuple[PyTree, Array]:
                params, state = carry
                step, after = tx.update(gradient, state, params)
                return (params + step, keep_precision(after, state)), step

            return jax.lax.scan(advance, (start, tx.init(start)), gradients)[1]

        def response(scale: float) -> float:
            gradients = scale * directions
            before = np.asarray(updates(start, gradients))
            after = np.asarray(updates(start * altered, gradients * altered[None]))
            return _largest_change(before[:, altered > 0], after[:, altered > 0])

        try:
            return max(response(scale) for scale in GRADIENT_SCALES)
        except TypeError as error:
            if "missing" not in str(error):
                raise
            raise UserError(
                "optimizer: its update needs more than gradients, state and parameters "
                f"(allowed: tx.update(gradients, state, params); got: {error})"
            ) from error


def componentwise(tx: optax.GradientTransformation, n: int = 3) -> bool:
    """Whether every component is updated by its own gradient, value and state alone."""
    return cross_component_response(tx, n) <= TOLERANCE


def require_componentwise(tx: optax.GradientTransformation) -> None:
    """Raise `UserError` unless ``tx`` is component-wise."""
    response = cross_component_response(tx)
    if response > TOLERANCE:
        raise UserError(
            "optimizer: not component-wise: changing the gradient of one component changed the "
            f"updates of others by {response:.2g} of their size (allowed: optimizers that treat "
            "each component by itself; clipping by norm, trust ratios, Muon and Shampoo do not)"
        )


def keep_precision(state: PyTree, before: PyTree) -> PyTree:
    """``state`` with the dtypes of ``before``, as a scan needs it."""
    return jax.tree.map(lambda new, old: jnp.asarray(new, old.dtype), state, before)


def _largest_change(
    a: Float[np.ndarray, "steps others"], b: Float[np.ndarray, "steps others"]
) -> float:
    finite = np.isfinite(a)
    if not np.array_equal(finite, np.isfinite(b)):
        return float("inf")
    size = np.max(np.abs(a[finite]), initial=0.0)
    change = np.max(np.abs(a[finite] - b[finite]), initial=0.0)
    return float(change / size) if change > 0 else 0.0
