"""Sharpness against its edge: the exact and cheap closed loop of component-wise optimizers.

Near a point, every component i of a component-wise optimizer answers a gradient with an
impulse response: r_i times one response that all share. Then training is N copies of one
scalar loop, on the eigenvalues λ̃ of the preconditioned Hessian ``R^½ H R^½``: a direction
of eigenvalue λ̃ has the multipliers of that loop with curvature λ̃. Momentum is stable below
``2(1 + β)`` for r = α; Adam with β₁ = 0.9, its second moment held, below 38 for
r = α / (√v̂ + ε) (Cohen et al. 2021, 2022).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import brentq

from optdyn.dynamics._derivative_rows import Rows

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Array, Complex, Float, PyTree

ALIKE = 1e-4
"""Components answer alike where their responses, scaled, differ by less than this part."""
SMALL_DECAY = 1e-2
"""Weight decays a step that differ by less count as one: edges move by no more."""
PART = 1 << 16
"""So many components are looked at at once."""
DEAD = 1e-17
"""The square of a gradient this small is lost in float32: its second moment stays zero."""
LARGEST_EDGE = 1e8
ROUNDING = 1e-9


@dataclasses.dataclass(frozen=True, eq=False)
class ComponentLoop:
    """One component's answer to its gradient: ``h' = A h + B g``, ``Δx = rate·(C h + D g) + E x``.

    ``rate``: a tree like the parameters, positive where the component descends (r_i above).
    The scalar loop is scaled so that the first answer is −1 times the gradient.
    """

    A: Float[np.ndarray, "N N"]
    B: Float[np.ndarray, " N"]
    C: Float[np.ndarray, " N"]
    D: float
    E: float
    rate: PyTree[Float[Array, "..."]]

    def multipliers(self, curvature: float, factor: float = 1.0) -> Complex[np.ndarray, " M"]:
        """The loop's multipliers at the preconditioned curvature λ̃, all updates × ``factor``."""
        size = len(self.B)
        loop = np.zeros((size + 1, size + 1))
        loop[:size, :size] = self.A
        loop[:size, size] = self.B * curvature
        loop[size, :size] = factor * self.C
        loop[size, size] = 1.0 + factor * (self.D * curvature + self.E)
        return np.linalg.eigvals(loop)

    @property
    def edge(self) -> float:
        """The preconditioned curvature at which the loop leaves the unit circle (∞: never)."""
        return _first_outside(lambda curvature: self.multipliers(curvature))

    def margin(self, curvature: float) -> float:
        """The factor on all updates at which the loop at λ̃ leaves the unit circle."""
        if curvature <= 0:
            return float("inf")
        return _first_outside(lambda factor: self.multipliers(curvature, factor))

    @property
    def settles(self) -> bool:
        """Whether the answer to a constant gradient settles: no memory adds up all gradients."""
        return math.isfinite(self._settled_rate)

    @functools.cached_property
    def _settled_rate(self) -> float:
        try:
            settled = np.linalg.solve(np.eye(len(self.B)) - self.A, self.B)
        except np.linalg.LinAlgError:
            return float("inf")
        return float(-(self.D + self.C @ settled))

    @functools.cached_property
    def _comoving(self) -> tuple[float, float]:
        """Rate and momentum where memory moves with the parameter.

        So it is in schedule-free optimizers: (h, x) together have one eigenvalue 1, along which a
        constant gradient pushes them on and on; the others fade.
        """
        size = len(self.B)
        whole = np.eye(size + 1)
        whole[:size, :size], whole[size, :size] = self.A, self.C
        whole[size, size] += self.E
        values, vectors = np.linalg.eig(whole)
        left = np.linalg.pinv(vectors)
        one = int(np.argmin(np.abs(values - 1.0)))
        pushed = float(np.real(vectors[size, one] * (left[one] @ np.append(self.B, self.D))))
        return -pushed, float(np.max(np.abs(np.delete(values, one)), initial=0.0))

    @property
    def steady_rate(self) -> float:
        """What a constant gradient moves a parameter by at each step, in units of ``rate``."""
        return self._settled_rate if self.settles else self._comoving[0]

    @property
    def momentum(self) -> float:
        """β of the memory that the answer fades with: the largest modulus of A's eigenvalues."""
        if not self.settles:
            return self._comoving[1]
        return float(np.max(np.abs(np.linalg.eigvals(self.A)), initial=0.0))

    @property
    def decay(self) -> float:
        """The part of the parameter that is taken away a step; none where memory moves with it."""
        return -self.E if self.settles else 0.0


def _first_outside(multipliers: Callable[[float], np.ndarray]) -> float:
    """The smallest argument from which on a multiplier is outside the unit circle."""

    def excess(argument: float) -> float:
        return float(np.max(np.abs(multipliers(argument)))) - 1.0

    low, high = 0.0, 1e-6
    while excess(high) <= ROUNDING:
        low, high = high, 1.2 * high
        if high > LARGEST_EDGE:
            return float("inf")
    return float(brentq(lambda a: excess(a) - ROUNDING, low, high, xtol=1e-14)) if low else high


def component_loop(rows: Rows | None, params: PyTree, gradients: PyTree) -> ComponentLoop | None:
    """The scalar loop that all components share, from `derivative_rows` of all of them.

    Dead inputs, with no gradient (or one below `DEAD`) and no second moment, have no
    derivative: their rate is 0.

    None where the components do not answer alike up to a factor, or not one by one.
    """
    flat = np.concatenate([np.ravel(np.asarray(leaf)) for leaf in jax.tree.leaves(gradients)])
    return None if rows is None else _shared(rows, params, flat)


def leaf_loops(rows: Rows | None, params: PyTree) -> list[ComponentLoop | None]:
    """`component_loop` of each leaf by itself, in the order of ``jax.tree.leaves(params)``."""
    leaves = jax.tree.leaves(params)
    if rows is None:
        return [None] * len(leaves)
    found, start = [], 0
    for leaf in leaves:
        stop = start + int(np.size(leaf))
        found.append(_shared([[row[start:stop] for row in rows_] for rows_ in rows], leaf))
        start = stop
    return found


def _shared(rows: Rows, params: PyTree, gradient: np.ndarray | None = None) -> ComponentLoop | None:
    """Part by part, so that little of a large network is in memory at once."""
    size = sum(int(np.size(leaf)) for leaf in jax.tree.leaves(params))
    first: ComponentLoop | None = None
    rates = np.zeros(size, np.float32)
    for start in range(0, size, PART):
        every = np.array(
            [
                [np.asarray(row[start : start + PART], np.float64) for row in effects]
                for effects in rows
            ]
        )
        stuck = ~np.all(np.isfinite(every), axis=(0, 1))
        if gradient is not None and np.any(stuck & (np.abs(gradient[start : start + PART]) > DEAD)):
            return None
        every[:, :, stuck] = 0.0
        here = _answers(every)
        if here is None:
            return None
        responses, decay, lead = here
        live = lead != 0
        if first is None and live.any():
            i = int(np.flatnonzero(live)[0])
            reference, shrinking = responses[:, i] / -lead[i], decay[i]
            first = _loop(every[:, :, i], -lead[i], params)
        if np.any(lead > 0):
            return None
        if live.any():
            scaled = responses[:, live] / -lead[live]
            if np.max(np.abs(scaled - reference[:, None])) > ALIKE * np.max(np.abs(reference)):
                return None
            if np.max(np.abs(decay[live] - shrinking)) > max(ALIKE * abs(shrinking), SMALL_DECAY):
                return None
        rates[start : start + PART] = -lead
    return None if first is None else dataclasses.replace(first, rate=_tree(rates, params))


def _answers(
    every: Float[np.ndarray, "causes effects n"],
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Impulse responses [times, n], decays [n] and first answers [n] of each component."""
    if np.any(every[1, 1:] != 0.0):  # memory that the parameters themselves drive
        return None
    A = every[2:, 1:].transpose(2, 1, 0)  # [n, to, from]
    B, C = every[0, 1:].T, every[2:, 0].T
    answers, h = [every[0, 0]], B.copy()
    for _ in range(2 * B.shape[1] + 2):
        answers.append(np.sum(C * h, axis=1))
        h = np.einsum("nij,nj->ni", A, h)
    responses = np.array(answers)
    size = np.max(np.abs(responses), axis=0)
    first = np.argmax(np.abs(responses) > 1e-9 * size, axis=0)
    lead = np.where(size > 0, responses[first, np.arange(len(first))], 0.0)
    return responses, every[1, 0], lead


def _loop(one: Float[np.ndarray, "causes effects"], factor: float, rate: PyTree) -> ComponentLoop:
    A, B, C = one[2:, 1:].T, one[0, 1:], one[2:, 0]
    acting = _acting(A, B, C)
    return ComponentLoop(
        A=A[np.ix_(acting, acting)],
        B=B[acting],
        C=C[acting] / factor,
        D=float(one[0, 0] / factor),
        E=float(one[1, 0]),
        rate=rate,
    )


def _acting(
    A: Float[np.ndarray, "N N"], B: Float[np.ndarray, " N"], C: Float[np.ndarray, " N"]
) -> np.ndarray:
    """The parts of memory that a gradient reaches and that reach the update."""
    driven, seen = B != 0, C != 0
    for _ in B:
        driven |= (A != 0) @ driven
        seen |= (A != 0).T @ seen
    return np.flatnonzero(driven & seen)


def _tree(values: Float[np.ndarray, " n"], like: PyTree) -> PyTree:
    leaves = jax.tree.leaves(like)
    structure: Any = jax.tree.structure(like)
    stops = np.cumsum([np.size(leaf) for leaf in leaves])[:-1]
    return structure.unflatten(
        [
            part.reshape(np.shape(leaf)).astype(jnp.result_type(leaf, jnp.float32))
            for part, leaf in zip(np.split(values, stops), leaves, strict=True)
        ]
    )
