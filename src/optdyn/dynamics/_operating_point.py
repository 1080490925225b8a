"""Where an optimizer's state settles, and what it does there."""

from __future__ import annotations

import dataclasses
from typing import Unpack

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from optdyn.dynamics._clockwork import under_gradients
from optdyn.dynamics._eigenmodes import Eigenmodes, eigenmodes
from optdyn.dynamics._fixed_points import FixedPoints, find_fixed_points
from optdyn.dynamics._linearization import linearize
from optdyn.dynamics._place import Place, with_leaves
from optdyn.dynamics._remembered import compiled
from optdyn.dynamics._state_layout import initial_state
from optdyn.dynamics._step_map import Optimizer, StepMap, step_map
from optdyn.errors import UserError, finite_number, require_number, whole_number
from optdyn.precision import double_precision

NUM_STARTS = 16


@dataclasses.dataclass(frozen=True)
class OperatingPoint:
    """The fixed point at convergence and the eigenmodes there.

    ``h0`` [N]: the initial state. ``candidates``: every candidate of the search;
    ``fixed_points``: the distinct ones that converged, the most often reached
    first, which is the one linearised.
    """

    h0: Float[np.ndarray, " N"]
    candidates: FixedPoints
    fixed_points: FixedPoints
    modes: Eigenmodes


def operating_point(
    step: StepMap, gradients: Float[np.ndarray, "components steps"]
) -> OperatingPoint:
    """Find where an optimizer settles after the gradient histories of some components.

    The search starts from states along those histories (early, halfway and
    last), follows the zero-gradient dynamics and polishes by Newton's method
    (eqs. 3–5).

    Raises `UserError` when no candidate converges, with the best residual.
    """
    candidates = find_fixed_points(step, _visited(step, gradients))
    distinct = candidates.unique()
    if len(distinct.status) == 0:
        raise UserError(
            "fixed points: no candidate converged (smallest residual "
            f"{np.nanmin(candidates.residual):.2g}; more iterations or other starts are needed)"
        )
    lin = linearize(step, h=distinct.h[0])
    return OperatingPoint(
        h0=step.h, candidates=candidates, fixed_points=distinct, modes=eigenmodes(lin)
    )


def _visited(
    step: StepMap, gradients: Float[np.ndarray, "components steps"]
) -> Float[np.ndarray, "M N"]:
    """States visited along the gradient histories: after a quarter, half and all of the steps."""
    paths = states_along(step, gradients)[:, 1:]
    last = paths.shape[1] - 1
    states = paths[:, [last // 4, last // 2, last]].reshape(-1, paths.shape[2])
    states = states[np.all(np.isfinite(states), axis=1)]
    return np.concatenate([step.h[None], states])[:NUM_STARTS]


def states_along(
    step: StepMap, gradients: Float[np.ndarray, "components steps"]
) -> Float[np.ndarray, "components steps+1 N"]:
    """The states of some components before each step of their gradient histories, and the last."""
    return np.asarray(_states(step, step.h, np.asarray(gradients, np.float64)))


@compiled
def _states(
    step: StepMap, h0: Float[Array, " N"], gradients: Float[Array, "components steps"]
) -> Float[Array, "components steps+1 N"]:
    def path(history: Float[Array, " steps"]) -> Float[Array, "steps+1 N"]:
        last, before = jax.lax.scan(lambda h, g: (step(h, g)[0], h), h0, history)
        return jnp.concatenate([before, last[None]])

    return jax.vmap(path)(gradients)


def settle(
    tx: Optimizer | StepMap,
    gradient_scale: float = 1.0,
    *,
    alternating: bool = True,
    steps: int = 20_000,
    param: float | None = None,
    **place: Unpack[Place],
) -> PyTree:
    """The state of ``tx`` that a long history of gradients of one size leads to.

    ``gradient_scale`` is that size s. ``alternating``: gradients +s, −s, +s, … and the
    mean of the last two vectors h, the stationary state of a zero-mean gradient: odd
    moments are 0, even ones as under a constant |g| = s (for Adam: first moment 0, second
    moment s²). Otherwise the last state under the constant gradient s. Every
    component of ``params`` (see `Place`; by default there is one) gets those gradients.
    Parameters are held where they are, or all at ``param``. Counters end at ``steps`` more than
    they were. The result is a state to be given to `optdyn.dynamics.linearize`.
    Raises `UserError` for what `step_map` refuses.

    ``place``: which component of which training, see `Place`.

    >>> import optax
    >>> state = settle(optax.scale_by_rms(0.9), 0.5)
    >>> round(float(state.nu[0]), 12)
    0.25
    """
    gradient_scale = finite_number("gradient_scale", gradient_scale)
    require_number("gradient_scale", gradient_scale, inclusive=True)
    steps = whole_number("steps", steps, minimum=2)
    step = step_map(tx, **place)
    period = step.clock.period
    # Within a cycle of steps the sign stays: what is gathered over it is not to cancel.
    cycles = np.arange(-(-steps // period)).repeat(period)
    signs = np.where(cycles % 2, -1.0 if alternating else 1.0, 1.0)
    with double_precision():
        params, start = step.around.params, step.state
        if param is not None:
            held = finite_number("param", param)
            params = jax.tree.map(lambda p: jnp.full_like(p, held), params)
            if place.get("state") is None and not isinstance(tx, StepMap):
                start = initial_state(step.tx, params)
        start = jax.tree.map(jnp.asarray, start)
        gradients = gradient_scale * signs
        previous = _settled(step, start, params, gradients[:-period])
        last = _settled(step, previous, params, gradients[-period:])
        return _mean_memory(step, last, previous) if alternating else last


def settle_from_start(step: StepMap, gradient_scale: float, steps: int) -> tuple[PyTree, PyTree]:
    """Two states: after ``steps`` gradients ±s of mean zero, and after as many gradients s.

    s is ``gradient_scale``. The first state is the mean over two histories, +s, −s, … and
    −s, +s, …: its odd moments are exactly 0, its even ones those of that many steps. Where
    steps come in cycles, each of them is a cycle.
    """
    signs = np.where(np.arange(steps) % 2, -1.0, 1.0).repeat(step.clock.period)
    with double_precision():
        start = jax.tree.map(jnp.asarray, step.state)
        if not steps:
            return start, start
        one, other, pushed = (
            _settled(step, start, step.around.params, gradient_scale * each)
            for each in (signs, -signs, np.ones(len(signs)))
        )
        return _mean_memory(step, one, other), pushed


def _mean_memory(step: StepMap, one: PyTree, other: PyTree) -> PyTree:
    """``one``, its memory the mean of both states'."""
    pairs = list(zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))
    moving = (*step.layout.memory, *step.layout.others)
    return with_leaves(one, {i: (pairs[i][0] + pairs[i][1]) / 2 for i in moving})


@compiled
def _settled(
    step: StepMap, start: PyTree, params: PyTree, gradients: Float[Array, " steps"]
) -> PyTree:
    return under_gradients(step.update_all, start, params, gradients)[0]
