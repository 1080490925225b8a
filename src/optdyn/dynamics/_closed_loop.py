"""The closed loop of optimizer and loss in a real training: which directions grow or swing."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optdyn.dynamics._margin import (
    LONGEST_PERIOD,
    LinearStep,
    any_margin,
    curvature_of,
    product_of,
)
from optdyn.dynamics._multipliers import (
    Spectrum,
    dense_spectrum,
    is_oscillating,
    iterated_spectrum,
    row_scales,
)
from optdyn.dynamics._training_step import (
    LossFn,
    linearized_step,
    require_own_state,
    require_values,
)
from optdyn.errors import require_positive_int
from optdyn.in_words import InWords
from optdyn.precision import double_precision, to_float64

if TYPE_CHECKING:
    from jaxtyping import Complex, Float, PyTree

LARGEST_DENSE = 2000
"""Entries of (x, s) up to which the derivative is formed as a matrix."""
LARGEST_WIDE = 200_000
"""Entries of (x, s) up to which everything is computed in float64."""
FAR_BEYOND = 0.01
"""A margin below this one is no advice for a learning rate."""
NAMED = 3
"""So many parameters that stand still are named in words."""


@dataclasses.dataclass(frozen=True, eq=False)
class ClosedLoop(InWords):
    """The leading multipliers of one training step, linearised at a point (x, s).

    A small deviation from the training's course along an eigenvector is multiplied by its
    multiplier μ at each step. ``largest`` [num]: the multipliers of largest modulus.
    ``oscillating`` [num]: the same among those off the positive real axis. A positive one
    above 1 is descent along negative curvature; an oscillating one beyond the unit circle
    says that the step is too long. Both may be fewer than was asked for.

    For the oscillating ones: ``shares`` is a tree like the parameters, whose leaves [num]
    are that leaf's part of the squared eigenvector; ``curvature`` [num] is vᴴHv / vᴴv
    along its part in the parameters (NaN where it has none); ``directions`` [num] are the
    eigenvectors' parts in the parameters, as trees with a leading axis.
    ``largest_shares`` and ``largest_curvature`` are those of the largest.

    ``margin``: the factor by which all updates (the learning rate) can grow before a
    direction along which the loss curves upwards swings apart: an oscillating multiplier
    reaches modulus 1. (Swings of more than 12 steps count along one line and where shorter
    steps end them; those of at most 3 count however the loss curves.) Below 1 where one
    has already, infinite where none does, NaN where it was not asked for.
    ``margin_direction`` [dim]: that
    direction at the margin, the float leaves of ``(params, state)`` in the order of
    ``jax.tree.leaves``, as one unit vector; empty where there is none; ``margin_shares`` are
    its leaves' parts [1]. ``frozen``: entries
    of (x, s) held fixed, as the step has no derivative there (dead inputs).

    ``averages``: the optimizer also moves parameters towards averages of their own (lookahead,
    schedule-free); ``margin`` makes these moves larger as well, which a learning rate does not.

    ``steps``: more than 1 where the optimizer's steps come in cycles (lookahead, accumulated
    gradients): multipliers are then those of a whole cycle, from the state that was given,
    and along the margin's direction a cycle grows in whatever way. `growth`, `period` and
    `e_folding` are in steps all the same.

    ``still``: names of a PyTorch model's parameters that have no gradient. The optimizer leaves
    them and their state alone; they are no part of (x, s).
    """

    largest: Complex[np.ndarray, " num"]
    oscillating: Complex[np.ndarray, " num"]
    shares: PyTree[Float[np.ndarray, " num"]]
    curvature: Float[np.ndarray, " num"]
    directions: PyTree[Complex[np.ndarray, "num ..."]]
    largest_shares: PyTree[Float[np.ndarray, " num"]]
    largest_curvature: Float[np.ndarray, " num"]
    margin: float
    margin_direction: Complex[np.ndarray, " dim"]
    margin_shares: PyTree[Float[np.ndarray, " one"]]
    frozen: int
    steps: int = 1
    averages: bool = False
    still: tuple[str, ...] = ()

    @property
    def spectral_radius(self) -> float:
        """The largest modulus of all."""
        return float(np.max(np.abs(self.largest), initial=0.0))

    @property
    def growth(self) -> Float[np.ndarray, " num"]:
        """The factor a step of each oscillating direction: |μ|."""
        return np.asarray(np.abs(self.oscillating) ** (1 / self.steps))

    @property
    def period(self) -> Float[np.ndarray, " num"]:
        """Steps a swing of each oscillating direction: 2π / |arg μ|."""
        return self.steps * 2 * np.pi / np.abs(np.angle(self.oscillating))

    @property
    def e_folding(self) -> Float[np.ndarray, " num"]:
        """Steps in which each oscillating direction changes by e: 1 / |ln|μ||."""
        with np.errstate(divide="ignore"):
            return self.steps / np.abs(np.log(np.abs(self.oscillating)))

    def verdict(self) -> list[str]:
        """The spectral radius, what grows, what swings, and how far the edge is."""
        cycle = f", for a cycle of {self.steps} steps" if self.steps > 1 else ""
        lines = [f"closed loop: spectral radius {self.spectral_radius:.6g}{cycle}"]
        positive = self.largest[~is_oscillating(self.largest)]
        if np.any(np.abs(positive) > 1 + 1e-9):
            lines.append(
                f"  grows without swinging: {np.max(positive.real) ** (1 / self.steps):.6g} a step "
                "(descent along negative curvature)"
            )
        descending = ~(self.curvature > 0) & (self.period > LONGEST_PERIOD)
        if np.any(descending):
            lines.append(f"  turns slowly, {self._in_words(int(np.argmax(descending)))}")
        if np.all(descending):
            lines.append("  nothing swings")
        else:
            lines.append(f"  swings, {self._in_words(int(np.argmin(descending)))}")
        lines.append(f"  {_margin_in_words(self.margin, self.averages)}{self._edge_in_words()}")
        if self.frozen:
            lines.append(f"  {self.frozen} entries without a derivative are held fixed")
        if self.still:
            more = f" and {len(self.still) - NAMED} more" if len(self.still) > NAMED else ""
            lines.append(
                "  stand still without a gradient (multiplier 1, not counted): "
                f"{', '.join(self.still[:NAMED])}{more}"
            )
        return lines

    def _in_words(self, i: int) -> str:
        """One of the oscillating directions."""
        return (
            f"{self.growth[i]:.6g} a step, period {self.period[i]:.3g} steps, "
            f"curvature {self.curvature[i]:.4g}, most in {_largest_share(self.shares, i)}"
        )

    def _edge_in_words(self) -> str:
        if self.margin < FAR_BEYOND or not self.margin_direction.size:
            return ""
        return f"; what swings there is most in {_largest_share(self.margin_shares, 0)}"


def closed_loop(
    tx: optax.GradientTransformation,
    loss_fn: LossFn,
    params: PyTree,
    state: PyTree,
    *,
    num: int = 8,
    margin: bool = True,
) -> ClosedLoop:
    """Linearise one training step ``(x, s) ↦ (x + Δx, s')`` of ``tx`` on ``loss_fn(params)``.

    Any optimizer: component-wise or not, with line search, wrapped, learned. The ``num``
    leading multipliers are found from products of the step's derivative with vectors, by
    `jax.jvp`: as a whole matrix up to 2000 entries of (x, s), by ARPACK beyond, with some 500
    products (2000 more for the margin) and up to 120 vectors of (x, s) in memory. All float
    leaves of ``(params, state)`` move; counters and keys stay. Up to 200,000 entries are
    computed in float64. For a minibatch loss close over one fixed batch. ``margin=False`` saves the
    search for `ClosedLoop.margin`, most of the time of large networks.

    Raises `UserError` where the step is not finite or has no derivative, for a leaf that is no
    array of real floats, for donated arrays, and within `jax.jit`.

    >>> import jax.numpy as jnp, optax
    >>> tx, x = optax.sgd(0.1), jnp.ones(2)
    >>> found = closed_loop(tx, lambda x: jnp.sum(jnp.array([0.5, 7.5]) * x**2), x, tx.init(x))
    >>> found.oscillating.real.round(6).tolist(), round(found.margin, 3)
    ([-0.5], 1.333)
    """
    require_positive_int("num", num)
    require_values(params, state, "closed_loop")
    require_own_state(tx, params, state, "closed_loop")
    size = sum(np.size(leaf) for leaf in jax.tree.leaves((params, state)))
    averages = _averages(params, state)
    if size > LARGEST_WIDE:
        step = linearized_step(tx, loss_fn, params, state)
        return dataclasses.replace(loop_of(step, num, margin), averages=averages)
    with double_precision():
        wide = to_float64(params)
        step = linearized_step(tx, loss_fn, wide, _widened(tx, wide, state))
        return dataclasses.replace(loop_of(step, num, margin), averages=averages)


def _averages(params: PyTree, state: PyTree) -> bool:
    kinds = optax.LookaheadParams, optax.contrib.ScheduleFreeState
    found = jax.tree.leaves((params, state), is_leaf=lambda node: isinstance(node, kinds))
    return any(isinstance(node, kinds) for node in found)


def _widened(tx: optax.GradientTransformation, wide: PyTree, state: PyTree) -> PyTree:
    """``state`` with the types that ``tx.init`` gives it for float64 parameters."""
    like = jax.eval_shape(tx.init, wide)
    structures: list[Any] = [jax.tree.structure(tree) for tree in (like, state)]
    if structures[0] != structures[1]:
        return to_float64(state)

    def cast(leaf: Any, kind: Any) -> Any:
        floats = jnp.issubdtype(kind.dtype, jnp.floating)
        return jnp.asarray(leaf, kind.dtype) if floats else leaf

    return jax.tree.map(cast, state, like)


def loop_of(step: LinearStep, num: int, with_margin: bool) -> ClosedLoop:
    """The closed loop of a training step, whatever it is computed with.

    Call it inside `optdyn.precision.double_precision`.
    """
    dense = step.matrix() if step.dim <= LARGEST_DENSE else None
    if dense is not None:
        spectrum = dense_spectrum(dense, num)
    else:
        product = product_of(step, 1.0)
        spectrum = iterated_spectrum(product, row_scales(product, step.dim), num)
    largest = spectrum.part(np.ones(spectrum.values.size, bool), num)
    oscillating = spectrum.part(is_oscillating(spectrum.values), num)
    margin, edge = any_margin(step, dense) if with_margin else (float("nan"), None)
    direction = np.zeros((0, step.dim), complex) if edge is None else edge[None]
    return ClosedLoop(
        largest=largest.values,
        oscillating=oscillating.values,
        shares=_shares(step, oscillating),
        curvature=_curvatures(step, oscillating),
        directions=_directions(step, oscillating),
        largest_shares=_shares(step, largest),
        largest_curvature=_curvatures(step, largest),
        margin=margin,
        margin_direction=direction.ravel(),
        margin_shares=_shares(step, Spectrum(np.ones(len(direction), complex), direction)),
        frozen=int(step.frozen.sum()),
        steps=step.steps,
    )


def _shares(step: LinearStep, spectrum: Spectrum) -> PyTree:
    """Each leaf's part of the squared eigenvectors, over the parameters."""
    squared = [np.abs(v[: step.num_params]) ** 2 for v in spectrum.vectors]
    trees = [step.params_of(row / max(row.sum(), np.finfo(float).tiny)) for row in squared]
    return _stacked(step, [jax.tree.map(np.sum, tree) for tree in trees], ())


def _directions(step: LinearStep, spectrum: Spectrum) -> PyTree:
    return _stacked(step, [step.params_of(v) for v in spectrum.vectors], None)


def _stacked(step: LinearStep, trees: list[PyTree], shape: tuple[int, ...] | None) -> PyTree:
    if trees:
        return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)
    return jax.tree.map(
        lambda leaf: np.zeros((0, *(np.shape(leaf) if shape is None else shape))), step.params
    )


def _curvatures(step: LinearStep, spectrum: Spectrum) -> Float[np.ndarray, " num"]:
    return np.array([curvature_of(step, vector) for vector in spectrum.vectors])


def _largest_share(shares: PyTree, i: int) -> str:
    leaves = jax.tree_util.tree_leaves_with_path(shares)
    path, share = max(leaves, key=lambda pair: pair[1][i])
    name = jax.tree_util.keystr(path, simple=True, separator=".") or "the parameters"
    return f"{name} ({100 * share[i]:.0f} %)"


def _margin_in_words(margin: float, averages: bool) -> str:
    if np.isnan(margin):
        return "margin: not computed"
    if np.isinf(margin):
        return "margin: no learning rate makes it swing apart"
    if margin < FAR_BEYOND:
        return (
            f"margin: {margin:.2g}: some direction swings apart at any learning rate of this size; "
            "look at its curvature (near zero: rounding or dead inputs)"
        )
    if averages:
        return (
            f"margin: at {margin:.4g} times all updates, those by averaging too, it is at the edge"
        )
    if margin < 1:
        return f"the learning rate is too large: {margin:.4g} times it would be at the edge"
    return f"margin: the learning rate can grow {margin:.4g} times"
