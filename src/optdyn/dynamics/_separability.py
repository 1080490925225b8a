"""Does an optimizer treat every component of the parameters by itself?"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

from optdyn.dynamics._state_layout import whole_state
from optdyn.errors import UserError, first_line, require_positive_int
from optdyn.precision import double_precision
from optdyn.random_streams import stream

# Norm clipping is silent on small gradients: look at every order of magnitude.
GRADIENT_SCALES = (1e-6, 1e-3, 1.0, 1e3, 1e6)
# Step sizes estimated from norms need some steps to move off their first guess.
STEPS = 30
TOLERANCE = 1e-9
# Some keep sums over rows and columns in the state, of matrices of this size and above alone.
LARGE = 128

Updates = Float[np.ndarray, "steps others"]


class NotComponentwise(UserError):
    """One component of a training cannot be looked at alone; ``reason`` says why."""

    def __init__(self, reason: str, allowed: str) -> None:
        super().__init__(
            f"optimizer: not component-wise here: {reason} (allowed: {allowed}; for any optimizer: "
            "optdyn.closed_loop)"
        )
        self.reason = reason


@dataclasses.dataclass(frozen=True)
class Coupling:
    """How one component's gradient and value change the updates of the others.

    ``response``: the largest such change, relative to the largest update; zero for a
    component-wise optimizer. ``common_factor``: at every step all other updates changed
    by one factor, as a norm that all components share makes them. ``matrices_only``: the
    components of a vector are not coupled, or it takes no vectors. ``silent_up_to``: the largest
    size of gradients tried at which nothing is coupled, 0 for none and inf for all.
    """

    response: float
    common_factor: bool
    matrices_only: bool
    silent_up_to: float

    @property
    def reason(self) -> str:
        """What couples the components, in words."""
        if self.common_factor:
            return "one factor scales them all, as in clipping by norm and in trust ratios"
        if self.matrices_only:
            return "it treats a matrix as a whole, as Muon and Shampoo do"
        return "something is computed over them all, such as a norm or a step size"


def coupling(tx: optax.GradientTransformation, n: int = 3) -> Coupling:
    """Test the off-diagonal part of the update's Jacobian, by finite differences.

    30 steps on a matrix [n, n] (some optimizers couple matrices alone) and, where that
    shows coupling or fails, on a vector [n²], each run twice with the history of one
    component altered, over gradients of magnitude 1e-6 … 1e6. Where the state of a large
    matrix is of another kind (Adafactor's), that is tried too.

    Raises `UserError` when ``tx`` does not take a plain array of parameters, or when its
    update needs more than gradients, state and parameters.
    """
    require_positive_int("n", n, minimum=2)
    return _coupling(hashable(tx), n)


@functools.lru_cache(maxsize=16)  # every analysis of one optimizer asks again
def _coupling(tx: optax.GradientTransformation, n: int) -> Coupling:
    try:
        found = _responses(tx, (n, n))
    except UserError:
        with contextlib.suppress(UserError):
            return _responses(tx, (n * n,))
        raise
    if found.response <= TOLERANCE and _treats_large_otherwise(tx, n):
        found = _responses(tx, (LARGE, LARGE))
    if found.response <= TOLERANCE:
        return found
    on_vectors = 0.0
    with contextlib.suppress(UserError):
        on_vectors = _responses(tx, (n * n,)).response
    return dataclasses.replace(found, matrices_only=on_vectors <= TOLERANCE)


def componentwise(tx: optax.GradientTransformation, n: int = 3) -> bool:
    """Whether every component is updated by its own gradient, value and state alone."""
    return coupling(tx, n).response <= TOLERANCE


def require_componentwise(tx: optax.GradientTransformation) -> Coupling:
    """What couples the components, if it can be avoided.

    Raises `UserError` where it acts on gradients of every size, or turns them.
    """
    found = coupling(tx)
    # Small gradients may couple nothing, as below the threshold of a clip by norm.
    if found.response > TOLERANCE and found.silent_up_to == 0.0:
        raise UserError(
            "optimizer: not component-wise: changing the gradient of one component changed the "
            f"updates of others by {found.response:.2g} of their size: {found.reason} (allowed: "
            "optimizers that treat each component by itself; one factor in a training: params=, "
            "state= and gradient= of it; any other: optdyn.closed_loop)"
        )
    return found


def hashable(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """``tx``, its parts wrapped as functions if they are objects that have no hash."""
    try:
        hash(tx)
    except TypeError:
        return optax.GradientTransformation(*map(functools.partial, tx))
    return tx


def _treats_large_otherwise(tx: optax.GradientTransformation, n: int) -> bool:
    """Whether the state of a large matrix is not as many numbers a component as a small one's."""

    def sizes(k: int) -> list[int]:
        state = jax.eval_shape(tx.init, jax.ShapeDtypeStruct((k, k), jnp.float64))
        return [math.prod(np.shape(leaf)) for leaf in jax.tree.leaves(state)]

    with double_precision():
        try:
            small, large = sizes(n), sizes(LARGE)
        except Exception:  # the user's own code may raise anything
            return False
    return len(small) != len(large) or any(
        b not in (a, a * LARGE**2 // n**2) for a, b in zip(small, large, strict=True)
    )


def _responses(tx: optax.GradientTransformation, shape: tuple[int, ...]) -> Coupling:
    """What is seen at each scale of gradients, on an array of that shape."""
    with double_precision():
        draws = np.asarray(jax.random.normal(stream(0, "componentwise"), (STEPS, *shape)))
        # Gradients that keep their direction: estimated step sizes only grow on those.
        directions = draws[:1] + 0.3 * draws
        start = np.cos(7.0 * draws[0])
        altered = np.ones(shape)
        altered[(0,) * len(shape)] = -3.0

        @jax.jit
        def updates(start: Array, gradients: Array) -> Array:
            def advance(carry: PyTree, gradient: Array) -> tuple[PyTree, Array]:
                params, state = carry
                step, after = tx.update(gradient, state, params)
                if jnp.shape(step) != shape:
                    raise UserError(
                        f"optimizer: its update has the shape {jnp.shape(step)} for parameters "
                        f"of shape {shape} (allowed: the shape of the parameters)"
                    )
                return (params + step, keep_precision(after, state)), step

            return jax.lax.scan(advance, (start, whole_state(tx, start)), gradients)[1]

        responses, common = [], []
        try:
            for scale in GRADIENT_SCALES:
                gradients = scale * directions
                before = np.asarray(updates(start, gradients))[:, altered > 0]
                after = np.asarray(updates(start * altered, gradients * altered[None]))
                responses.append(_largest_change(before, after[:, altered > 0]))
                if responses[-1] > TOLERANCE:
                    common.append(_one_factor(before, after[:, altered > 0]))
        except UserError:
            raise
        except Exception as error:  # the user's own code may raise anything
            allowed = "tx.init(params) and tx.update(gradients, state, params)"
            raise cannot_be_run("an array of parameters", error, start, allowed) from error
    scales = dict(zip(GRADIENT_SCALES, responses, strict=True))
    silent = list(itertools.takewhile(lambda scale: scales[scale] <= TOLERANCE, scales))
    limit = np.inf if len(silent) == len(scales) else max(silent, default=0.0)
    return Coupling(max(responses), bool(common) and all(common), False, float(limit))


def cannot_be_run(on: str, error: Exception, params: PyTree, allowed: str) -> UserError:
    """What is said where an optimizer raises ``error`` on ``params``, which are ``on`` in words."""
    unwrapped = str(error).replace("'", "").endswith("no attribute fast")
    if unwrapped or isinstance(params, optax.LookaheadParams):
        return UserError(
            "optimizer: optax.lookahead steps a pair of trees, fast and slow, which has no single "
            "component (allowed: the optimizer within it; or optdyn.closed_loop with "
            "optax.LookaheadParams and a loss of their fast part)"
        )
    told = first_line(error).replace("DynamicJaxprTracer", "an array")
    return UserError(f"optimizer: cannot be run on {on}: {told} (allowed: {allowed})")


def keep_precision(state: PyTree, before: PyTree) -> PyTree:
    """``state`` with the dtypes of ``before``, as a scan needs it."""

    def like(new: Any, old: Any) -> Any:
        # Random keys have a dtype of their own, which no array is brought to.
        key = jnp.issubdtype(old.dtype, jax.dtypes.extended)
        return new if key else jnp.asarray(new, old.dtype)

    return jax.tree.map(like, state, before)


def _largest_change(a: Updates, b: Updates) -> float:
    finite = np.isfinite(a)
    if not np.array_equal(finite, np.isfinite(b)):
        return float("inf")
    size = np.max(np.abs(a[finite]), initial=0.0)
    change = np.max(np.abs(a[finite] - b[finite]), initial=0.0)
    return float(change / size) if change > 0 else 0.0


def _one_factor(before: Updates, after: Updates) -> bool:
    """Whether at every step ``after`` is ``before`` times one number."""
    if not (np.all(np.isfinite(before)) and np.all(np.isfinite(after))):
        return False
    largest = np.argmax(np.abs(before), axis=1)[:, None]
    products = before * np.take_along_axis(after, largest, axis=1)
    swapped = after * np.take_along_axis(before, largest, axis=1)
    return bool(np.max(np.abs(products - swapped)) <= 1e-9 * np.max(np.abs(products)))
