"""What an optimizer does with given gradients: the behaviour that identifies it."""

from __future__ import annotations

import dataclasses
from typing import Unpack

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from optdyn.dynamics._clockwork import timing
from optdyn.dynamics._jacobians import copies_at_once
from optdyn.dynamics._place import Place, with_leaves
from optdyn.dynamics._remembered import compiled
from optdyn.dynamics._separability import keep_precision
from optdyn.dynamics._step_map import Optimizer, StepMap, state_vector, step_map
from optdyn.errors import finite_number, require_number, require_positive_int, whole_number

DECADES = np.arange(-3.0, 4.0)
KINDS = ("impulse", "constant", "increase", "alternating", "chirp")
INCREASE = 10.0
LARGEST_PROBE = INCREASE * 10.0 ** DECADES[-1]
"""The largest gradient that is given, in units of the scale."""
# Of their own size, above rounding.
FELT = 1e-6
THRESHOLD_RANGE = (1e-6, 1e6)


@dataclasses.dataclass(frozen=True)
class Responses:
    """Updates of one component to P probes of T steps, each from the same state.

    ``gradients`` and ``updates`` [P, T]; ``kinds`` and ``amplitudes`` [P]: what each probe
    is. Of an amplitude a: ``impulse`` a, 0, 0, …; ``constant`` a, a, a, …; ``increase``
    a, and 10a in the second half; ``alternating`` a, −a, a, …; ``chirp`` a·cos(0.37k²).
    The parameter is held at 0. ``updates`` are the odd part (Δx(g) − Δx(−g))/2, which
    leaves out the drift and whatever else does not change sign with the gradient. Where
    steps come in cycles of ``period``, each of the T is a cycle: its steps have one gradient,
    and their updates are summed. ``still``: no update depends on the gradients at all.
    """

    gradients: Float[np.ndarray, "P T"]
    updates: Float[np.ndarray, "P T"]
    kinds: tuple[str, ...]
    amplitudes: Float[np.ndarray, " P"]
    period: int = 1
    still: bool = False

    @property
    def gradient_scale(self) -> float:
        """The amplitude in the middle."""
        return float(np.median(self.amplitudes))

    def of_kind(self, kind: str) -> Float[np.ndarray, "A T"]:
        """The updates of the probes of one kind, by rising amplitude."""
        return self.updates[[k == kind for k in self.kinds]]


def responses(
    tx: Optimizer | StepMap,
    *,
    gradient_scale: float = 1.0,
    steps: int = 100,
    h: Float[np.ndarray, " N"] | None = None,
    frozen: tuple[int, ...] = (),
    **place: Unpack[Place],
) -> Responses:
    """Probe an optimizer over six decades of gradients about ``gradient_scale``.

    Every probe starts from the state h (see `StepMap`), by default the initial one.

    Raises `UserError` for an optimizer that is not component-wise, a scale that is not
    above 0, fewer than 4 steps and an h of another shape.
    """
    gradient_scale = finite_number("gradient_scale", gradient_scale)
    require_number("gradient_scale", gradient_scale)
    steps = whole_number("steps", steps, minimum=4)
    levels = gradient_scale * 10.0**DECADES
    kinds = tuple(kind for kind in KINDS for _ in levels)
    gradients = np.concatenate([level * _shape(kind, steps) for kind in KINDS for level in levels])
    gradients = gradients.reshape(len(kinds), steps)
    step = step_map(tx, **place)
    vector = step.h if h is None else state_vector(step, h)
    period = timing(step).period
    both = np.repeat(np.concatenate([gradients, -gradients]), period, axis=1)
    updates = component_responses(step, both, vector, frozen)
    still = bool(np.all(updates == updates[:1]))
    updates = updates.reshape(len(both), steps, period).sum(axis=2)
    positive, negative = np.split(updates, 2)
    return Responses(
        gradients=gradients,
        updates=(positive - negative) / 2,
        kinds=kinds,
        amplitudes=np.tile(levels, len(KINDS)),
        period=period,
        still=still,
    )


def unfelt_by_others(step: StepMap, gradient_scale: float) -> float:
    """Up to which size of one component's gradient no other component's update changes.

    Looked for at powers of ten about ``gradient_scale``; inf where none changes any, and where
    all do, as in trust ratios. A clip by the norm of all acts above such a size.
    """
    if step.alone:
        return step.silent_up_to
    sizes = gradient_scale * 10.0 ** np.arange(2 * DECADES[0], DECADES[-1] + 2)
    felt = np.asarray(_felt(step, sizes, sizes[0] / step.size)) > FELT
    if not np.any(felt) or felt[0]:
        return np.inf
    return float(sizes[np.argmax(felt) - 1])


@compiled
def _felt(step: StepMap, sizes: Float[Array, " K"], small: Float[Array, ""]) -> Float[Array, " K"]:
    """How much each own gradient changes the updates to ``small`` gradients of others."""
    ones = jax.tree.map(jnp.ones_like, step.around.gradients)
    params = step.around.params

    def updates(own: Float[Array, ""], others: Float[Array, ""]) -> Array:
        gradients = step.around.put(jax.tree.map(lambda one: others * one, ones), own)

        def advance(state: PyTree, _: None) -> tuple[PyTree, Array]:
            found, after = step.update_all(gradients, state, params)
            return keep_precision(after, state), ravel_pytree(step.around.put(found, 0.0))[0]

        return jax.lax.scan(advance, start, None, length=step.clock.period)[1]

    start = jax.tree.map(jnp.asarray, step.state)
    nothing = jnp.float64(0.0)
    without = updates(nothing, small)
    largest = jnp.max(jnp.abs(without - updates(nothing, nothing)), initial=0.0)
    changes = jax.lax.map(
        lambda own: jnp.max(jnp.abs(updates(own, small) - without), initial=0.0), sizes
    )
    return changes / jnp.where(largest > 0.0, largest, 1.0)


def component_responses(
    step: StepMap,
    gradients: Float[np.ndarray, "P T"],
    h: Float[np.ndarray, " N"],
    frozen: tuple[int, ...] = (),
) -> Float[np.ndarray, "P T"]:
    """The updates of one component to each row of gradients, from the state h, x held.

    Leaves of the state at the positions ``frozen`` stay as they are (a schedule's counters).
    """
    return np.asarray(_updates(step, h, gradients, frozen=frozen))


@compiled
def _updates(
    step: StepMap, h: Array, gradients: Float[Array, "P T"], *, frozen: tuple[int, ...]
) -> Float[Array, "P T"]:
    start = jax.tree.map(jnp.asarray, step.state_with(h))
    first = jax.tree.leaves(start)
    x = step.around.of(step.around.params)

    def advance(state: PyTree, g: Float[Array, ""]) -> tuple[PyTree, Float[Array, ""]]:
        after, dx = step.advance(state, g, x)
        return with_leaves(after, {i: first[i] for i in frozen}), dx

    def probed(row: Float[Array, " T"]) -> Float[Array, " T"]:
        return jax.lax.scan(advance, start, row)[1]

    return jax.lax.map(probed, gradients, batch_size=copies_at_once(step, len(gradients)))


def respond(
    tx: optax.GradientTransformation,
    gradients: Float[Array, "P T"],
    start: optax.OptState | None = None,
) -> Float[Array, "P T"]:
    """The updates to each row of gradients, parameters held at 0.

    ``start``: a state for P components, by default the initial one.
    """
    params = jnp.zeros(gradients.shape[0], gradients.dtype)
    start = jax.tree.map(jnp.asarray, tx.init(params) if start is None else start)

    def advance(state: optax.OptState, g: Array) -> tuple[optax.OptState, Array]:
        updates, after = tx.update(g, state, params)
        return keep_precision(after, state), updates

    return jax.lax.scan(advance, start, jnp.swapaxes(gradients, 0, 1))[1].T


def reversal_threshold(
    tx: Optimizer | StepMap, *, gradient_scale: float = 1.0, lag: int = 0
) -> float:
    """The opposite gradient that just turns ``tx``'s update round, relative to the first one.

    After a gradient s (``gradient_scale``) and ``lag`` zeros, −c·s is given: the smallest c
    for which the update to it has not the sign of the first update. A measure of memory
    that is defined for sign-based optimizers too: 0 for gradient descent, β^(lag+1) for
    momentum, b₁ b₂^lag (1−b₂)/(1−b₁) for Lion. Exact to about 1e-12; looked for
    between 1e-6 (below: 0) and 1e6 (above: inf).

    Raises `UserError` for an optimizer that is not component-wise and a bad scale or lag.
    """
    require_number("gradient_scale", gradient_scale)
    require_positive_int("lag", lag, minimum=0)
    step = step_map(tx)
    low, high = np.log(THRESHOLD_RANGE)

    def turned(log_c: Float[np.ndarray, " C"]) -> np.ndarray:
        probes = np.zeros((len(log_c), lag + 2))
        probes[:, 0], probes[:, -1] = gradient_scale, -gradient_scale * np.exp(log_c)
        updates = component_responses(step, probes, step.h)
        return updates[:, -1] * np.sign(updates[:, 0]) <= 0.0

    for _ in range(8):
        ends = np.linspace(low, high, 65)
        beyond = turned(ends)
        if beyond[0]:
            return 0.0 if low == np.log(THRESHOLD_RANGE[0]) else float(np.exp(low))
        if not np.any(beyond):
            return float("inf") if high == np.log(THRESHOLD_RANGE[1]) else float(np.exp(high))
        first = int(np.argmax(beyond))
        low, high = ends[first - 1], ends[first]
    return float(np.exp((low + high) / 2))


def _shape(kind: str, steps: int) -> Float[np.ndarray, " T"]:
    k = np.arange(steps)
    shapes = {
        "impulse": k == 0,
        "constant": k >= 0,
        "increase": np.where(k < steps // 2, 1.0, INCREASE),
        "alternating": np.where(k % 2, -1.0, 1.0),
        "chirp": np.cos(0.37 * k**2),
    }
    return shapes[kind].astype(np.float64)
