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
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.optimize import brentq

from optdyn.inner_loop._evaluated import with_extra_args

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Array, Complex, Float, PyTree

ALIKE = 1e-4
"""Components answer alike where their responses, scaled, differ by less than this part."""
SMALL_DECAY = 1e-2
"""Weight decays a step that differ by less count as one: edges move by no more."""
COMMON = 1e-3
"""A factor is common to all gradients where they are off by less than this part."""
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
    def steady_rate(self) -> float:
        """What a constant gradient moves a parameter by at each step, in units of ``rate``.

        Infinite where the answer never settles, since memory adds up all gradients.
        """
        try:
            settled = np.linalg.solve(np.eye(len(self.B)) - self.A, self.B)
        except np.linalg.LinAlgError:
            return float("inf")
        return float(-(self.D + self.C @ settled))

    @property
    def momentum(self) -> float:
        """β of the memory that the answer fades with: the largest modulus of A's eigenvalues."""
        return float(np.max(np.abs(np.linalg.eigvals(self.A)), initial=0.0))


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


Rows = list[list[Any]]
"""How each cause (gradient, parameter, memories) moves each effect (Δx, memories): arrays [n]."""


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


def silent_leaves(rows: Rows | None, params: PyTree) -> list[bool]:
    """Of each leaf, whether the update answers nothing: its learning rate is 0 now."""
    stops = np.cumsum([int(np.size(leaf)) for leaf in jax.tree.leaves(params)])
    if rows is None:
        return [False] * len(stops)
    updates = np.array([np.asarray(effects[0]) for effects in rows])
    return [not np.any(part) for part in np.split(updates, stops[:-1], axis=1)]


def derivative_rows(tx: optax.GradientTransformation, params: PyTree, state: PyTree) -> Rows | None:
    """The answers of a step to each cause, component by component; it can be compiled.

    One product with a vector of ones for each cause, where the gradient is zero: there the
    derivative does not pass through second moments, they are held. None where the state
    holds arrays of other shapes than the parameters.
    """
    wrapped = with_extra_args(tx)
    memory, rest = _memory(params, state)
    if memory is None:
        return None
    zeros = jax.tree.map(jnp.zeros_like, params)
    ones = jax.tree.map(jnp.ones_like, params)
    still = [jax.tree.map(jnp.zeros_like, part) for part in memory]

    def answer(g: PyTree, h: list[PyTree], x: PyTree) -> tuple[PyTree, list[PyTree]]:
        updates, after = wrapped.update(g, rest(h), x, value=0.0, grad=g)
        return updates, _memory(params, after)[0] or []

    def moved(g: PyTree, h: list[PyTree], x: PyTree) -> list[Array]:
        update, parts = jax.jvp(answer, (zeros, memory, params), (g, h, x))[1]
        return [_flat(tree) for tree in (update, *parts)]

    causes = [(ones, still, zeros), (zeros, still, ones)]
    for k, part in enumerate(memory):
        one = jax.tree.map(jnp.ones_like, part)
        causes.append((zeros, [*still[:k], one, *still[k + 1 :]], zeros))
    return [moved(*each) for each in causes]


def compact(
    rows: Callable[[PyTree, PyTree], Rows | None],
) -> Callable[[PyTree, PyTree], Rows | None]:
    """``rows`` compiled; a row of equal numbers takes the memory of one."""
    ends = jax.jit(lambda *at: jax.tree.map(lambda row: (jnp.min(row), jnp.max(row)), rows(*at)))

    @functools.partial(jax.jit, static_argnums=0)
    def varying(chosen: tuple[int, ...], *at: PyTree) -> list[Array]:
        found = jax.tree.leaves(rows(*at))
        return [found[i] for i in chosen]

    def compacted(params: PyTree, state: PyTree) -> Rows | None:
        spans: Any = jax.device_get(ends(params, state))
        if spans is None:
            return None
        size = sum(int(np.size(leaf)) for leaf in jax.tree.leaves(params))
        pairs = [pair for effects in spans for pair in effects]
        chosen = tuple(i for i, (low, high) in enumerate(pairs) if low != high)
        whole: list[Any] = [np.broadcast_to(low, size) for low, _ in pairs]
        for i, row in zip(chosen, varying(chosen, params, state), strict=True):
            whole[i] = row
        width = len(spans[0])
        return [whole[i : i + width] for i in range(0, len(whole), width)]

    return compacted


def common_factor(
    tx: optax.GradientTransformation, params: PyTree, state: PyTree, gradients: PyTree
) -> Array:
    """What all gradients are multiplied by before the optimizer remembers them.

    1, or less where a clip by the norm of all of them acts; NaN where they are not all
    multiplied by the same number. It is read from the memories, which take the gradient in
    linearly or squared (from the update itself where there is none), beside what they would
    take in without a clip, by derivatives at a gradient of zero.
    """
    wrapped = with_extra_args(tx)

    def effects(part: Array) -> list[Array]:
        g = jax.tree.map(lambda leaf: (part * leaf).astype(leaf.dtype), gradients)
        updates, after = wrapped.update(g, state, params, value=0.0, grad=g)
        memory = _memory(params, after)[0] or []
        return [_flat(tree).astype(jnp.float32) for tree in (memory or [updates])]

    def first(part: Array) -> list[Array]:
        return jax.jvp(effects, (part,), (jnp.ones(()),))[1]

    none, whole = jnp.zeros(()), jnp.ones(())
    slopes, bends = jax.jvp(first, (none,), (whole,))
    grown = [a - b for a, b in zip(effects(whole), effects(none), strict=True)]
    found = jnp.full((), jnp.nan)
    for power, terms in ((2, [bend / 2 for bend in bends]), (1, slopes)):
        for term, change in zip(terms, grown, strict=True):
            size = jnp.vdot(term, term)
            factor = jnp.vdot(term, change) / size
            off = jnp.linalg.norm(change - factor * term) / jnp.linalg.norm(change)
            value = jnp.where(off < COMMON, jnp.maximum(factor, 0.0) ** (1 / power), jnp.nan)
            found = jnp.where(size > 0, value, found)
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


def _memory(params: PyTree, state: PyTree) -> tuple[list[PyTree] | None, Any]:
    """The parts of ``state`` shaped like the parameters, and how to put others in.

    A part may lack leaves that a mask or a partition gives to another optimizer: zeros
    stand for them.
    """
    leaves = jax.tree.leaves(params)
    structure: Any = jax.tree.structure(params)

    def is_like_params(tree: Any) -> bool:
        if jax.tree.structure(tree, is_leaf=_is_masked) != structure:
            return False
        parts = jax.tree.leaves(tree, is_leaf=_is_masked)
        pairs = zip(parts, leaves, strict=True)
        fits = all(
            _is_masked(part) or (np.shape(part) == np.shape(leaf) and _is_float(part))
            for part, leaf in pairs
        )
        return fits and not all(map(_is_masked, parts))

    nodes = jax.tree.leaves(state, is_leaf=is_like_params)
    whole: Any = jax.tree.structure(state, is_leaf=is_like_params)
    own = [i for i, node in enumerate(nodes) if is_like_params(node)]
    others = [leaf for i, leaf in enumerate(nodes) if i not in own]
    if any(np.ndim(leaf) for leaf in others if hasattr(leaf, "dtype")):
        return None, None  # arrays of other shapes: not a memory component by component

    def put(parts: list[PyTree]) -> PyTree:
        filled = list(nodes)
        for i, part in zip(own, parts, strict=True):
            filled[i] = jax.tree.map(
                lambda old, new: old if _is_masked(old) else new,
                filled[i],
                part,
                is_leaf=_is_masked,
            )
        return whole.unflatten(filled)

    def filled_in(node: PyTree) -> PyTree:
        return jax.tree.map(
            lambda part, leaf: jnp.zeros_like(leaf) if _is_masked(part) else part,
            node,
            params,
            is_leaf=_is_masked,
        )

    return [filled_in(nodes[i]) for i in own], put


def _is_masked(node: Any) -> bool:
    return isinstance(node, optax.MaskedNode)


def _is_float(leaf: Any) -> bool:
    return bool(jnp.issubdtype(jnp.result_type(leaf), jnp.floating))


def _flat(tree: PyTree) -> Array:
    return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def _tree(values: Float[np.ndarray, " n"], like: PyTree) -> PyTree:
    leaves = jax.tree.leaves(like)
    structure: Any = jax.tree.structure(like)
    stops = np.cumsum([np.size(leaf) for leaf in leaves])[:-1]
    return structure.unflatten(
        [
            jnp.asarray(part.reshape(np.shape(leaf)), jnp.result_type(leaf, jnp.float32))
            for part, leaf in zip(np.split(values, stops), leaves, strict=True)
        ]
    )
