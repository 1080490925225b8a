"""The linear system that one component of an optimizer is near an operating point."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Unpack

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from optdyn.dynamics import _words as words
from optdyn.dynamics._clockwork import timing
from optdyn.dynamics._influence import hold_common_factor
from optdyn.dynamics._jacobians import value_and_jacobian
from optdyn.dynamics._place import Place
from optdyn.dynamics._step_map import Optimizer, StepMap, state_vector, step_map
from optdyn.errors import finite_number, whole_number
from optdyn.in_words import InWords
from optdyn.precision import double_precision

MOST_POSITIONS = 10
"""State variables up to which every choice of positions among them is tried."""
# Units of state variables are read from so many steps, and differ by powers of UNIT: a change of
# units rounds nothing, and is not made for nothing.
HORIZON, UNIT = 50, 2.0**10

Vector = Float[np.ndarray, " N"]
Matrix = Float[np.ndarray, "N N"]


@dataclasses.dataclass(frozen=True)
class Linearization(InWords):
    """``h' = h* + A(h−h*) + B(g−g*) + E(x−x*) + residual``,
    ``Δx = drift + C(h−h*) + D(g−g*) + weight_decay·(x−x*)``.

    h is the state BEFORE the step, as in ``update(g, h)``. ``A`` [N, N], ``B`` [N],
    ``C`` [N], ``E`` [N]; scalars ``D``, ``weight_decay`` = ∂Δx/∂x (−η·wd for decoupled
    weight decay), ``drift`` = Δx at the operating point. ``residual`` [N] is
    ``F(h*, g*) − h*``, zero at a fixed point. The operating point: ``state`` ``h*`` [N],
    ``gradient`` ``g*``, ``param`` ``x*``. ``names`` [N] says which leaf each entry of h is.

    ``comoving`` [N]: some optimizers keep positions in their state (schedule-free
    keeps an iterate z) and depend on x only through distances from them. Where such a
    p exists that h − p·x makes the system independent of x, the state here is
    h − p·x, and E and weight_decay are zero. Otherwise p = 0 and the state is h.

    ``cycle``: where steps come in cycles of p (every p-th acts, say), the linear systems of
    the p steps that follow the operating point, along the path that the optimizer itself takes.
    Then A … residual above are those of the whole cycle at a constant gradient, x moving
    with the updates within it: one map from cycle to cycle. `closed_loop_radius` goes through
    the single steps. Empty where every step is alike; ``period`` is p, or 1.

    ``held``: in words, the factor common to all components that acts and is held at its value;
    "" for none. ``varies``: the step depends on counters besides (a schedule, a bias
    correction), which are frozen where they are, at ``count`` (None: no counters).
    """

    A: Float[np.ndarray, "N N"]
    B: Float[np.ndarray, " N"]
    C: Float[np.ndarray, " N"]
    D: float
    E: Float[np.ndarray, " N"]
    weight_decay: float
    drift: float
    residual: Float[np.ndarray, " N"]
    state: Float[np.ndarray, " N"]
    gradient: float
    param: float
    names: tuple[str, ...]
    comoving: Float[np.ndarray, " N"]
    cycle: tuple[Linearization, ...] = ()
    held: str = ""
    varies: bool = False
    count: int | None = None

    @property
    def period(self) -> int:
        """The steps that one application of A stands for."""
        return max(1, len(self.cycle))

    def verdict(self) -> list[str]:
        """Where, what it is like, at what rate, and up to where it is stable."""
        # The modes and the theory are built upon this record.
        from optdyn.dynamics._eigenmodes import eigenmodes

        first = words.point_in_words(self)
        return [*first, *eigenmodes(self).verdict(), *words.rest_in_words(self)]

    @property
    def size(self) -> int:
        """The number N of state variables."""
        return len(self.B)

    @property
    def residual_norm(self) -> float:
        """``‖F(h*, g*) − h*‖``."""
        return float(np.linalg.norm(self.residual))

    def impulse_response(self, steps: int) -> Float[np.ndarray, " steps"]:
        """Δx_k of a unit gradient at k = 0, less the drift: D, CB, CAB, CA²B, ….

        At fixed x; where ``comoving`` is not zero, with x moved by these updates. Where
        there is a ``cycle``, k counts cycles, all of the first at that gradient.
        """
        steps = whole_number("steps", steps)
        response = np.empty(steps)
        response[0] = self.D
        h = self.B
        for k in range(1, steps):
            response[k] = self.C @ h
            h = self.A @ h
        return response


def linearize(
    tx: Optimizer | StepMap,
    *,
    h: Float[np.ndarray, " N"] | None = None,
    param: float | None = None,
    **place: Unpack[Place],
) -> Linearization:
    """Linearise one component of an optimizer at an operating point.

    Which component, in which training: see `optdyn.dynamics.Place`: ``params``, ``leaf``,
    ``index``, ``state``, ``gradient``, ``count``. Without ``params`` it is one component by
    itself: ``state`` is one for a parameter of shape (1,) (by default ``tx.init``'s;
    `settle` makes stationary ones; ``optax.tree_utils.tree_set(state, nu=...)`` sets one
    leaf), ``gradient`` a number. ``h`` [N] replaces the component's own vector in that state
    (see `StepMap`; a fixed point found by `find_fixed_points`), ``param`` its own value.
    Everything in the tree counts: masks, partitions, rates by leaf. Counters and
    hyperparameters are frozen: of a schedule, its value at ``count`` counts. A factor common
    to all components (clipping by norm, trust ratios) is held at the value that it has there.

    ``place``: which component of which training, see `Place`.

    >>> import optax
    >>> lin = linearize(optax.sgd(0.5, momentum=0.75))
    >>> lin.A.tolist(), lin.B.tolist(), lin.C.tolist(), lin.D
    ([[0.75]], [1.0], [-0.375], -0.5)

    Raises `UserError` for what `step_map` refuses, a state that does not fit, an update
    that JAX cannot differentiate, an operating point where it has no derivative
    (Adam at zero second moment; a sign or clip at its threshold) or is not finite, and for
    components that turn one another's updates.
    """
    step = step_map(tx, **place)
    with double_precision():
        gradient = step.around.own_gradient
        x = step.around.own_param if param is None else finite_number("param", param)
    h_star = step.h if h is None else state_vector(step, h)
    time = timing(step)
    z = np.concatenate([h_star, [gradient, x]])
    if time.period == 1:
        found = _in_comoving_state(_one_step(step, z))
    else:
        found = _whole_cycle(step, z, time.period)
    count = max(step.counts.values(), default=None)
    return dataclasses.replace(found, varies=time.varies, count=count)


def _one_step(step: StepMap, z: Float[np.ndarray, " inputs"]) -> Linearization:
    value, jacobian = value_and_jacobian(step, z)
    return _system(step.names, z, value, *hold_common_factor(step, z, jacobian))


def _system(
    names: tuple[str, ...], z: np.ndarray, value: np.ndarray, jacobian: np.ndarray, held: str
) -> Linearization:
    n = len(z) - 2
    return Linearization(
        A=jacobian[:n, :n],
        B=jacobian[:n, n],
        C=jacobian[n, :n],
        D=float(jacobian[n, n]),
        E=jacobian[:n, n + 1],
        weight_decay=float(jacobian[n, n + 1]),
        drift=float(value[n]),
        residual=value[:n] - z[:n],
        state=z[:n],
        gradient=float(z[n]),
        param=float(z[n + 1]),
        names=names,
        comoving=np.zeros(n),
        held=held,
    )


def _whole_cycle(step: StepMap, z: Float[np.ndarray, " inputs"], period: int) -> Linearization:
    """The systems of ``period`` steps along the optimizer's own path, and their composition."""
    n = len(z) - 2
    # Of [h, x] and the gradient: what they are after some steps, and its derivative.
    point, slope = z.copy(), np.eye(n + 2)
    steps = []
    for _ in range(period):
        one = _one_step(step, point)
        steps.append(one)
        jacobian = np.eye(n + 2)
        jacobian[:n] = np.column_stack([one.A, one.B, one.E])
        jacobian[n + 1] += np.concatenate([one.C, [one.D, one.weight_decay]])
        slope = jacobian @ slope
        with double_precision():
            here = step.state_with(jnp.asarray(point[:n]))
            after, _ = step.advance(here, point[n], point[n + 1])
        step = dataclasses.replace(step, state=after)
        point = np.concatenate([one.state + one.residual, [z[n], point[n + 1] + one.drift]])
    value = np.append(point[:n], point[n + 1] - z[n + 1])
    moves = np.vstack([slope[:n], slope[n + 1] - np.eye(n + 2)[n + 1]])
    held = next((one.held for one in steps if one.held), "")
    whole = _system(step.names, z, value, moves, held)
    return dataclasses.replace(whole, cycle=tuple(steps))


def _positions(
    condition: Float[np.ndarray, "M N"], target: np.ndarray, units: Vector, tolerance: float
) -> Vector | None:
    """Whole p that meets ``condition``, p in units of its own; None where there is none.

    A position moves as x does, so p is a whole number there and 0 elsewhere: any other
    sum would hide a decay, by a factor of its own. Where several p meet the condition, the
    one of least norm need not be whole, but one of ones and zeros can be.
    """
    least = np.linalg.lstsq(condition, target)[0] * units
    size = len(units)
    few = itertools.product((0.0, 1.0), repeat=size) if size <= MOST_POSITIONS else ()
    for p in (least, *map(np.array, few)):
        whole = np.max(np.abs(p - np.round(p))) <= 1e-6
        if whole and np.max(np.abs(condition @ (p / units) - target)) <= tolerance:
            return p
    return None


def _in_comoving_state(lin: Linearization) -> Linearization:
    """Change to the state h − p·x where that removes every dependence on x.

    Substitution gives the conditions C p = −∂Δx/∂x and (I − A) p = E.
    """
    units = state_units(lin.A, lin.B, lin.C)
    condition = np.vstack([lin.C[None], (np.eye(lin.size) - lin.A) / units[:, None]]) * units
    target = np.concatenate([[-lin.weight_decay], lin.E / units])
    scale = np.max(np.abs(target))
    if scale == 0.0 or lin.size == 0:
        return lin
    p = _positions(condition, target, units, 1e-10 * scale)
    if p is None:
        return lin
    return dataclasses.replace(
        lin,
        A=lin.A - np.outer(p, lin.C),
        B=lin.B - p * lin.D,
        E=np.zeros(lin.size),
        weight_decay=0.0,
        residual=lin.residual - p * lin.drift,
        state=lin.state - p * lin.param,
        comoving=p,
    )


def state_units(A: Matrix, B: Vector, C: Vector) -> Vector:
    """Units [N] in which a gradient moves each variable about as far as that then moves x.

    Of ``h' = A h + B g``, ``Δx = C h``. A second moment of gradients of 1e-6, beside a mean
    of them, has the unit 1e-6: in units of 1 what couples the two looks like nothing, or
    like everything, to a solver of eigenvalues.
    """
    reach, sight = _largest(A, B), _largest(A.T, C)
    relevance = np.sqrt(reach * sight)
    most = np.max(relevance, initial=0.0)
    if most == 0.0:
        return np.ones(len(B))
    # What is not driven, or not seen, comes in beside what is.
    reach, sight = (np.where(size > 0.0, size, most) for size in (reach, sight))
    unit = np.sqrt(reach / sight)
    reference = unit[int(np.argmax(relevance))]
    return UNIT ** np.round(np.log(unit / reference) / np.log(UNIT))


def _largest(A: Matrix, v: Vector) -> Vector:
    """The largest of |A^k v|, entry by entry, over the first steps."""
    largest = np.abs(v)
    for _ in range(HORIZON):
        v = A @ v
        if np.max(np.abs(v), initial=0.0) > 1e100:
            break
        largest = np.maximum(largest, np.abs(v))
    return largest
