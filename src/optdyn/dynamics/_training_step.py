"""One step of a training, ``(x, s) ↦ (x + c·Δx, s')``, and its derivative along a direction.

x is the pytree of parameters, s the optimizer's state, c a factor on the update (1: the
training as it is). All float leaves of ``(x, s)`` make one vector z, in the order of
``jax.tree.leaves((x, s))``. Everything else in s (counters, keys, flags) is no part of z.
Where steps come in cycles, one "step" is a whole cycle: the derivative is the product of
those of its steps, taken along the training's own course.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, PyTree

from optdyn.dynamics._cycle import steps_in_cycle
from optdyn.dynamics._place import leaf_names, with_leaves
from optdyn.dynamics._released import released
from optdyn.dynamics._separability import keep_precision
from optdyn.errors import UserError
from optdyn.inner_loop._unroll import losses_and_gradients, optimizer_step
from optdyn.tasks import Problem
from optdyn.tasks._gate import require_params

LossFn = Callable[..., Any]

PROBES = 2
"""Random directions along which entries without a derivative are found."""

DIFFERENCES = (1e-4, 1e-6)
"""Sizes of the moves by which the derivative is compared with differences."""
SETTLED, OTHER = 1e-4, 1e-2
"""Parts of their size by which settled differences differ, and by which the derivative may."""


@dataclasses.dataclass(frozen=True, eq=False)
class TrainingStep:
    """The step of ``tx`` on ``loss_fn`` at ``params`` and ``state``. Made by `linearized_step`.

    ``frozen`` [dim]: entries of z that have no derivative here and cannot move: dead
    inputs, whose gradient and second moment are exactly zero. They are held fixed.
    ``steps``: the steps of a cycle (see `steps_in_cycle`), 1 for most optimizers.
    """

    tx: optax.GradientTransformationExtraArgs
    loss_fn: LossFn
    params: PyTree
    state: PyTree
    frozen: Bool[np.ndarray, " dim"]
    steps: int = 1

    @functools.cached_property
    def dim(self) -> int:
        """The number of entries of z."""
        return sum(int(leaf.size) for leaf in _moving(self.params, self.state))

    @functools.cached_property
    def num_params(self) -> int:
        """The number of entries of x, the first of z."""
        return sum(int(np.size(leaf)) for leaf in jax.tree.leaves(self.params))

    @functools.cached_property
    def times(self) -> Callable[..., Array]:
        """``times(v, c)``: the derivative along v [dim] of a cycle with updates c times as large.

        The course along which it is taken is the training's own, at c = 1.
        """
        return jax.jit(self._times)

    @functools.cached_property
    def course(self) -> Callable[..., Array]:
        """``course(v, c)`` [steps, dim]: where v is after each step of the cycle, as in `times`."""
        return jax.jit(lambda v, factor: self._run(v, factor)[1])

    def _times(self, v: Float[Array, " dim"], factor: Array | float = 1.0) -> Float[Array, " dim"]:
        return self._run(v, factor)[0]

    def _run(
        self, v: Float[Array, " dim"], factor: Array | float
    ) -> tuple[Float[Array, " dim"], Float[Array, "steps dim"]]:
        live = jnp.asarray(~self.frozen)
        in_params = jnp.arange(self.dim) < self.num_params
        start = jax.tree.map(jnp.asarray, (self.params, self.state))

        def advance(at: tuple[PyTree, PyTree], moving: Array) -> tuple[Any, Array]:
            def step(z: Array) -> tuple[Array, Any]:
                after = _one_step(self.tx, self.loss_fn, *_filled(at, z))
                return _flatten(*after), after

            _, moved, after = jax.jvp(released(step), (_flatten(*at),), (moving,), has_aux=True)
            moved = jnp.where(in_params, moving + factor * (moved - moving), moved)
            return keep_precision(after, at), jnp.where(live, moved, 0.0)

        moving = jnp.where(live, v, 0.0).astype(_flatten(*start).dtype)
        if self.steps == 1:
            end = advance(start, moving)[1]
            return end, end[None]

        def one(at: tuple[Any, Array], _: None) -> tuple[tuple[Any, Array], Array]:
            following = advance(*at)
            return following, following[1]

        (_, end), path = jax.lax.scan(one, (start, moving), length=self.steps)
        return end, path

    def curvature_along(self, v: Float[np.ndarray, " n"]) -> float:
        """vᵀHv of the loss, for v in the parameters' part of z."""
        return float(self._quadratic_form(jnp.asarray(v)))

    @functools.cached_property
    def _quadratic_form(self) -> Callable[[Array], Array]:
        flat, unravel = ravel_pytree(self.params)
        problem = Problem(params=self.params, loss_fn=self.loss_fn)

        @jax.jit
        def product(v: Float[Array, " n"]) -> Float[Array, ""]:
            def gradient(x: Array) -> Array:
                return ravel_pytree(losses_and_gradients(problem, unravel(x))[1])[0]

            return v @ jax.jvp(released(gradient), (flat,), (v.astype(flat.dtype),))[1]

        return product

    @functools.cached_property
    def _columns(self) -> Callable[..., Array]:
        together = jax.jit(jax.vmap(self._times, in_axes=(0, None)))
        in_turn = jax.jit(lambda rows, c: jax.lax.map(lambda v: self._times(v, c), rows))

        def columns(rows: Array, factor: float) -> Array:
            try:
                return together(rows, factor)
            except TypeError:  # a jax.custom_vjp that calls itself in its rule has no batch of them
                return in_turn(rows, factor)

        return columns

    def matrix(self, factor: float = 1.0, chunk: int = 64) -> Float[np.ndarray, "dim dim"]:
        """The derivative as a dense matrix, with updates ``factor`` times as large."""
        basis = np.eye(self.dim)
        rows = [
            np.asarray(self._columns(np.resize(basis[i : i + chunk], (chunk, self.dim)), factor))
            for i in range(0, self.dim, chunk)
        ]
        return np.concatenate(rows)[: self.dim].T

    def params_of(self, z: Float[np.ndarray, " dim"]) -> PyTree:
        """The part of z that belongs to the parameters, as their tree."""
        return in_pieces(z, self.params)


def in_pieces(z: np.ndarray, like: PyTree) -> Any:
    """The first entries of ``z`` as a tree of the shapes of ``like``."""
    leaves, treedef = jax.tree.flatten(like)
    pieces = np.split(z, np.cumsum([np.size(leaf) for leaf in leaves]))[:-1]
    shaped = [piece.reshape(np.shape(leaf)) for piece, leaf in zip(pieces, leaves, strict=True)]
    return jax.tree.unflatten(treedef, shaped)


def linearized_step(
    tx: optax.GradientTransformation, loss_fn: LossFn, params: PyTree, state: PyTree
) -> TrainingStep:
    """The step of ``tx`` on ``loss_fn(params)``, ready to be differentiated.

    Raises `UserError` where the step is not finite, has no derivative along a leaf, or
    where a leaf of the state is memory in integers.
    """
    wrapped = optax.with_extra_args_support(tx)
    step = TrainingStep(wrapped, loss_fn, params, state, np.zeros(0, bool))
    step = dataclasses.replace(
        step, frozen=np.zeros(step.dim, bool), steps=steps_in_cycle(tx, params, state)
    )
    moved, following = jax.jit(lambda: _one_step(wrapped, loss_fn, params, state))()
    _require_no_integer_memory(params, state, following)
    before, after = (np.asarray(_flatten(*z)) for z in ((params, state), (moved, following)))
    # Some begin with a best loss of infinity, and keep it for some steps.
    if not np.all(np.isfinite(after) | (after == before)):
        raise UserError(
            "closed loop: the next step is not finite (give the parameters and the state of an "
            "earlier step)"
        )
    step = dataclasses.replace(step, frozen=_without_derivative(step))
    _require_its_derivative(step)
    return step


def _require_its_derivative(step: TrainingStep) -> None:
    """Raise `UserError` where differences settle on another value than the derivative.

    So it is where the step is ``f(x)·g/‖g‖²`` at a minimum: as steep in every direction, but
    not linear. Differences that do not settle (rounded memory, kinks) say nothing. They are
    taken in float64 alone; narrower numbers round too much away.
    """
    wide = all(leaf.dtype == jnp.float64 for leaf in _moving(step.params, step.state))
    if not wide or step.steps > 1:
        return
    z = np.asarray(_flatten(step.params, step.state))
    in_params = np.arange(step.dim) < step.num_params
    draw = np.random.default_rng(1).standard_normal(step.dim)
    # Second moments stay positive: a part of each entry.
    v = draw * np.where(in_params, 1.0, np.abs(z)) * ~step.frozen

    @jax.jit
    def after(size: Array) -> Array:
        at = _filled((step.params, step.state), jnp.asarray(z + size * v))
        moved = _flatten(*_one_step(step.tx, step.loss_fn, *at))
        return jnp.where(jnp.asarray(step.frozen), 0.0, moved)

    far, near = (np.asarray(after(s) - after(-s)) / (2 * s) for s in DIFFERENCES)
    derivative = np.asarray(step.times(v, 1.0))
    size = float(np.linalg.norm(near))
    settled = np.linalg.norm(far - near) <= SETTLED * size
    if settled and np.linalg.norm(near - derivative) > OTHER * size:
        raise UserError(
            "closed loop: the step has no derivative here, as it is not linear however near (such "
            "as a Polyak step at the minimum; give the parameters and the state of another step)"
        )


def _without_derivative(step: TrainingStep) -> Bool[np.ndarray, " dim"]:
    draws = np.random.default_rng(0).standard_normal((PROBES, step.dim))
    moved = [np.asarray(step.times(draw, 1.0)) for draw in draws]
    bad = ~np.all(np.isfinite(moved), axis=0)
    if not bad.any():
        return bad
    problem = Problem(params=step.params, loss_fn=step.loss_fn)
    gradients = losses_and_gradients(problem, step.params)[1]
    named = zip(leaf_names(step.params), jax.tree.leaves(gradients), strict=True)
    require_dead(bad, named, "give the state after some steps, or an eps_root > 0")
    return bad


def require_dead(
    bad: Bool[np.ndarray, " dim"], gradients: Iterable[tuple[str, Any]], advice: str
) -> None:
    """Raise `UserError` where a parameter without a derivative can move.

    ``bad``: the entries of z without one. ``gradients``: of each leaf of the parameters, by name.
    One moves where its gradient is not zero, or where no entry of its leaf has a derivative.
    """
    start = 0
    for name, gradient in gradients:
        flat = np.ravel(np.asarray(gradient))
        stuck = bad[start : start + flat.size]
        start += flat.size
        if np.any(stuck & (flat != 0)) or (stuck.size and stuck.all()):
            raise UserError(
                f"closed loop: the step has no derivative along {name} here, such as that of a "
                f"square root at zero ({advice})"
            )


def require_values(params: PyTree, state: PyTree, caller: str) -> None:
    """Raise `UserError` for a leaf of ``params`` that is no array of real floats.

    And where arrays have no values now: within `jax.jit`, or after they were donated.
    """
    require_params(params)
    for tree, called in ((params, "params"), (state, "state")):
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            if isinstance(leaf, jax.core.Tracer):
                raise UserError(
                    f"{caller}: called within jax.jit or another transformation (call it outside, "
                    "between two compiled steps)"
                )
            if isinstance(leaf, jax.Array) and leaf.is_deleted():
                raise UserError(
                    f"{caller}: {called}{jax.tree_util.keystr(path)} was donated or deleted (give "
                    "what the last compiled step returned)"
                )


def require_own_state(
    tx: optax.GradientTransformation, params: PyTree, state: PyTree, caller: str
) -> None:
    """Raise `UserError` for a state of other parameters."""
    like: Any = jax.eval_shape(tx.init, params)
    leaves = jax.tree_util.tree_leaves_with_path(state)
    if [path for path, _ in leaves] != [p for p, _ in jax.tree_util.tree_leaves_with_path(like)]:
        return  # some states grow, or are wrapped
    for (path, leaf), fresh in zip(leaves, jax.tree.leaves(like), strict=True):
        if np.shape(leaf) != fresh.shape:
            raise UserError(
                f"{caller}: state{jax.tree_util.keystr(path)} has shape {np.shape(leaf)}, but for "
                f"these params tx.init gives {fresh.shape} (give the state of these params)"
            )


def _require_no_integer_memory(params: PyTree, state: PyTree, following: PyTree) -> None:
    """Raise `UserError` for a leaf that moves, has a parameter's size, and is made of integers."""
    sizes = {int(np.size(leaf)) for leaf in jax.tree.leaves(params)} - {0, 1}
    structures: list[Any] = [jax.tree.structure(tree) for tree in (state, following)]
    if structures[0] != structures[1]:
        return
    pairs = zip(jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(following), strict=True)
    for (path, old), new in pairs:
        dtype = jnp.result_type(old)
        integers = jnp.issubdtype(dtype, jnp.integer) and np.size(old) in sizes
        if integers and np.any(np.asarray(old) != np.asarray(new)):
            raise UserError(
                f"state{jax.tree_util.keystr(path)}: {dtype} that changes at a step is not allowed "
                "(memory in whole numbers has no derivative; use the optimizer that stores floats)"
            )


def _is_float(leaf: Any) -> bool:
    return bool(jnp.issubdtype(jnp.result_type(leaf), jnp.floating))


def _moving(params: PyTree, state: PyTree) -> list[Any]:
    return [jnp.asarray(leaf) for leaf in jax.tree.leaves((params, state)) if _is_float(leaf)]


def _flatten(params: PyTree, state: PyTree) -> Float[Array, " dim"]:
    parts = [jnp.ravel(leaf) for leaf in _moving(params, state)]
    wide = jnp.result_type(jnp.float32, *(part.dtype for part in parts))
    return jnp.concatenate([part.astype(wide) for part in parts])


def _filled(at: tuple[PyTree, PyTree], z: Float[Array, " dim"]) -> tuple[PyTree, PyTree]:
    """(x, s) with the float leaves taken from z, and everything else as it is in ``at``."""
    moved, start = {}, 0
    for i, leaf in enumerate(jax.tree.leaves(at)):
        if _is_float(leaf):
            like = jnp.asarray(leaf)
            own = z[start : start + like.size]
            moved[i] = own.reshape(like.shape).astype(like.dtype)
            start += like.size
    x, s = with_leaves(at, moved)
    return x, s


def _one_step(
    tx: optax.GradientTransformationExtraArgs, loss_fn: LossFn, params: PyTree, state: PyTree
) -> tuple[PyTree, PyTree]:
    problem = Problem(params=params, loss_fn=loss_fn)
    _, _, updates, after = optimizer_step(tx, problem, params, state)
    return optax.apply_updates(params, updates), after
