"""The state that a long history of gradients leads an optimizer to."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from optdyn.dynamics._remembered import Remembered
from optdyn.dynamics._separability import keep_precision
from optdyn.dynamics._state_layout import initial_state
from optdyn.dynamics._step_map import Optimizer, StepMap, step_map
from optdyn.errors import finite_number, require_number, whole_number
from optdyn.precision import double_precision

if TYPE_CHECKING:
    from typing import Unpack

    from jaxtyping import Array, Float, PyTree

    from optdyn.dynamics._place import Place

PROGRAMS: Remembered[Callable[..., PyTree]] = Remembered()


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
        run = PROGRAMS.recall((step.kind, "settle"), _compiled_run)
        gradients = jnp.asarray(gradient_scale * signs)
        previous = run(step, start, params, gradients[:-period])
        last = run(step, previous, params, gradients[-period:])
        if not alternating:
            return last
        parts, treedef = jax.tree.flatten(last)
        for i, part in enumerate(jax.tree.leaves(previous)):
            if i in (*step.layout.memory, *step.layout.others):
                parts[i] = (parts[i] + part) / 2
        return jax.tree.unflatten(treedef, parts)


def _compiled_run() -> Callable[..., PyTree]:
    def run(
        step: StepMap, start: PyTree, params: PyTree, gradients: Float[Array, " steps"]
    ) -> PyTree:
        def advance(before: PyTree, gradient: Float[Array, ""]) -> tuple[PyTree, None]:
            every = jax.tree.map(lambda p: jnp.full_like(p, gradient.astype(p.dtype)), params)
            _, after = step.update_all(before, every, params)
            return keep_precision(after, before), None

        return jax.lax.scan(advance, start, gradients)[0]

    return jax.jit(run)
