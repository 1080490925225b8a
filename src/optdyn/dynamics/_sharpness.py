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
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.optimize import brentq

from optdyn.random_streams import stream

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Array, Complex, Float, PyTree

ALIKE = 1e-4
"""Components answer alike where their responses, scaled, differ by less than this part."""
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
        """What a constant gradient moves a parameter by at each step, in units of ``rate``."""
        return float(-(self.D + self.C @ np.linalg.solve(np.eye(len(self.B)) - self.A, self.B)))

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


def component_loop(
    tx: optax.GradientTransformation, params: PyTree, state: PyTree
) -> ComponentLoop | None:
    """The scalar loop that all components share at ``state``, where the gradient is zero.

    At a gradient of zero the derivative does not pass through second moments: they are held.
    None where the components do not answer alike up to a factor, or not one by one.
    """
    every = _derivatives(tx, params, state)
    return None if every is None else _shared(every, params)


def leaf_loops(
    tx: optax.GradientTransformation, params: PyTree, state: PyTree
) -> list[ComponentLoop | None]:
    """`component_loop` of each leaf by itself, in the order of ``jax.tree.leaves(params)``."""
    leaves = jax.tree.leaves(params)
    every = _derivatives(tx, params, state)
    if every is None:
        return [None] * len(leaves)
    stops = np.cumsum([np.size(leaf) for leaf in leaves])[:-1]
    parts = np.split(every, stops, axis=2)
    return [_shared(part, leaf) for part, leaf in zip(parts, leaves, strict=True)]


def _derivatives(
    tx: optax.GradientTransformation, params: PyTree, state: PyTree
) -> Float[np.ndarray, "causes effects n"] | None:
    """How each cause (gradient, parameter, memories) moves each effect (Δx, memories).

    Component by component: one product with a vector of ones for each cause.
    """
    wrapped = optax.with_extra_args_support(tx)
    memory, rest = _memory(params, state)
    if memory is None:
        return None
    zeros = jax.tree.map(jnp.zeros_like, params)
    ones = jax.tree.map(jnp.ones_like, params)
    still = [jax.tree.map(jnp.zeros_like, part) for part in memory]

    def answer(g: PyTree, h: list[PyTree], x: PyTree) -> tuple[PyTree, list[PyTree]]:
        updates, after = wrapped.update(g, rest(h), x, value=0.0, grad=g)
        return updates, _memory(params, after)[0] or []

    @jax.jit
    def moved(g: PyTree, h: list[PyTree], x: PyTree) -> list[Array]:
        update, parts = jax.jvp(answer, (zeros, memory, params), (g, h, x))[1]
        return [_flat(tree) for tree in (update, *parts)]

    causes = [(ones, still, zeros), (zeros, still, ones)]
    for k, part in enumerate(memory):
        one = jax.tree.map(jnp.ones_like, part)
        causes.append((zeros, [*still[:k], one, *still[k + 1 :]], zeros))
    return np.array([[np.asarray(row, np.float64) for row in moved(*each)] for each in causes])


def _shared(every: Float[np.ndarray, "causes effects n"], params: PyTree) -> ComponentLoop | None:
    if not np.all(np.isfinite(every)):
        return None
    A = every[2:, 1:].transpose(2, 1, 0)  # [n, to, from]
    B, C = every[0, 1:].T, every[2:, 0].T
    D, E = every[0, 0], every[1, 0]
    if np.any(every[1, 1:] != 0.0):  # memory that the parameters themselves drive
        return None
    # The impulse response of every component, scaled by its first answer.
    answers, h = [D], B.copy()
    for _ in range(2 * B.shape[1] + 2):
        answers.append(np.sum(C * h, axis=1))
        h = np.einsum("nij,nj->ni", A, h)
    responses = np.array(answers)
    size = np.max(np.abs(responses), axis=0)
    live = size > 0
    if not live.any():
        return None
    first = np.argmax(np.abs(responses) > 1e-9 * size, axis=0)
    lead = responses[first, np.arange(len(first))]
    scaled = responses[:, live] / -lead[live]
    alike = np.max(np.abs(scaled - scaled[:, :1])) <= ALIKE * np.max(np.abs(scaled))
    if not alike or np.ptp(E) > ALIKE * max(1e-12, float(np.max(np.abs(E)))) or np.any(lead > 0):
        return None
    i = int(np.flatnonzero(live)[0])
    factor = -lead[i]
    acting = _acting(A[i], B[i], C[i])
    return ComponentLoop(
        A=A[i][np.ix_(acting, acting)],
        B=B[i][acting],
        C=C[i][acting] / factor,
        D=float(D[i] / factor),
        E=float(E[i]),
        rate=_tree(np.where(live, -lead, 0.0), params),
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


def top_curvature(
    hessian_times: Callable[[PyTree], PyTree], rate: PyTree, *, steps: int = 20, seed: int = 0
) -> float:
    """The largest eigenvalue of ``R^½ H R^½``, from ``steps`` products with H, by Lanczos.

    ``hessian_times(v)``: H times v, both trees like the parameters. Three vectors of the
    parameters' size are in memory, whatever the number of steps; without reorthogonalisation
    the largest Ritz value is as right as with it (Paige 1972).
    """
    root = jax.tree.map(jnp.sqrt, rate)
    leaves = jax.tree.leaves(rate)
    structure: Any = jax.tree.structure(rate)
    keys = jax.random.split(stream(seed, "Lanczos start"), len(leaves))
    drawn = [
        jax.random.normal(key, leaf.shape, leaf.dtype)
        for key, leaf in zip(keys, leaves, strict=True)
    ]
    start = structure.unflatten(drawn)

    @jax.jit
    def advance(v: PyTree, before: PyTree, beta: Array) -> tuple[PyTree, Array, Array]:
        image = _times(root, hessian_times(_times(root, v)))
        alpha = _dot(v, image)
        rest = jax.tree.map(lambda a, b, c: a - alpha * b - beta * c, image, v, before)
        size = jnp.sqrt(_dot(rest, rest))
        following = jax.tree.map(lambda a: a / jnp.maximum(size, 1e-30), rest)
        return following, alpha, size

    v = jax.tree.map(lambda a: a / jnp.sqrt(_dot(start, start)), start)
    before, beta = jax.tree.map(jnp.zeros_like, v), jnp.zeros(())
    diagonal: list[float] = []
    off: list[float] = []
    for _ in range(steps):
        following, alpha, beta = advance(v, before, beta)
        before, v = v, following
        diagonal.append(float(alpha))
        off.append(float(beta))
        if off[-1] <= 1e-6 * max(abs(value) for value in diagonal):
            break
    inner = off[: len(diagonal) - 1]
    return float(np.linalg.eigvalsh(np.diag(diagonal) + np.diag(inner, 1) + np.diag(inner, -1))[-1])


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


def _times(a: PyTree, b: PyTree) -> PyTree:
    return jax.tree.map(jnp.multiply, a, b)


def _dot(a: PyTree, b: PyTree) -> Array:
    products = jax.tree.map(lambda x, y: jnp.vdot(x, y).astype(jnp.float32), a, b)
    return sum(jax.tree.leaves(products), jnp.zeros((), jnp.float32))
