"""One component of any optax optimizer as a map ``h', Δx = F(h, g, x)``."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optdyn.dynamics._separability import hashable, keep_precision, require_componentwise
from optdyn.dynamics._state_layout import StateLayout, initial_state, state_layout
from optdyn.errors import (
    UserError,
    finite_number,
    first_line,
    require_number,
    whole_number,
)
from optdyn.precision import double_precision, to_float64

if TYPE_CHECKING:
    from jaxtyping import Array, Float, PyTree


class HasOptax(Protocol):
    """A pytree of parameters that gives an optimizer."""

    def as_optax(self) -> optax.GradientTransformation: ...


Optimizer: TypeAlias = optax.GradientTransformation | HasOptax


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True, eq=False)
class StepMap:
    """``(h [N], g, x) -> (h' [N], Δx)``: one step of one component. Made by `step_map`.

    ``build(parameters)`` is the optimizer. A StepMap is a pytree, so that what is
    compiled for one serves all that differ in ``parameters`` and ``state`` alone:
    every checkpoint of a learned optimizer (`with_parameters`).

    The vector h holds the memory that ``layout`` names: the float leaves of the
    optimizer's state that exist once a component. Everything else in ``state``, counters,
    hyperparameters, running sums that all components share, is frozen at the value
    it has there. Call it inside `optdyn.precision.double_precision`; jit, vmap and
    reverse-mode differentiation apply.
    """

    parameters: PyTree
    state: PyTree
    build: Callable[[PyTree], optax.GradientTransformation]
    layout: StateLayout

    def tree_flatten(self) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """Counters stand with the structure: optax computes schedules from them in float32,
        exactly only where the compiler knows their values.
        """
        parts, treedef = jax.tree.flatten(self.state)
        counters = {i: np.asarray(parts[i]) for i in self.layout.counters}
        arrays = [part for i, part in enumerate(parts) if i not in counters]
        values = tuple((i, a.dtype.str, a.shape, a.tobytes()) for i, a in counters.items())
        return (self.parameters, arrays), (treedef, values, self.build, self.layout)

    @classmethod
    def tree_unflatten(cls, fixed: tuple[Any, ...], children: tuple[Any, ...]) -> StepMap:
        treedef, counters, build, layout = fixed
        parameters, arrays = children
        parts = list(arrays)
        for i, dtype, shape, value in counters:
            parts.insert(i, np.frombuffer(value, dtype).reshape(shape))
        return cls(parameters, treedef.unflatten(parts), build, layout)

    @property
    def tx(self) -> optax.GradientTransformation:
        """The optimizer."""
        return self.build(self.parameters)

    def with_parameters(self, parameters: PyTree) -> StepMap:
        """The same optimizer with other parameters, in its initial state."""
        with double_precision():
            wide = to_float64(parameters)
            state = initial_state(self.build(wide))
        return dataclasses.replace(self, parameters=wide, state=state)

    @property
    def h(self) -> Float[np.ndarray, " N"]:
        """The state vector that ``state`` holds."""
        parts = jax.tree.leaves(self.state)
        return np.concatenate([np.zeros(0), *(np.ravel(parts[i]) for i in self.layout.memory)])

    @property
    def names(self) -> tuple[str, ...]:
        """One name an entry of h."""
        return self.layout.names

    @property
    def precision(self) -> float:
        """The unit roundoff of the least precise part of h."""
        parts = [jax.tree.leaves(self.state)[i] for i in self.layout.memory]
        return max([float(jnp.finfo(part.dtype).eps) for part in parts], default=2.0**-52)

    def __call__(
        self,
        h: Float[Array, " N"],
        g: Float[Array, ""] | float,
        x: Float[Array, ""] | float = 0.0,
    ) -> tuple[Float[Array, " N"], Float[Array, ""]]:
        gradient, param = (jnp.reshape(jnp.asarray(a, jnp.float64), (1,)) for a in (g, x))
        updates, after = self.tx.update(gradient, self.state_with(h), param)
        h_next = _vector(jax.tree.leaves(after), self.layout.memory)
        return h_next, updates[0].astype(jnp.float64)

    def state_with(self, h: Float[Array, " N"]) -> PyTree:
        """``state`` with the vector h."""
        parts, treedef = jax.tree.flatten(self.state)
        start = 0
        for i in self.layout.memory:
            stop = start + parts[i].size
            parts[i] = h[start:stop].reshape(parts[i].shape).astype(parts[i].dtype)
            start = stop
        return jax.tree.unflatten(treedef, parts)


@dataclasses.dataclass(frozen=True)
class _Fixed:
    """Builds one optimizer, whatever the parameters."""

    tx: optax.GradientTransformation

    def __call__(self, parameters: PyTree) -> optax.GradientTransformation:
        del parameters
        return self.tx


def _as_optax(parameters: Any) -> optax.GradientTransformation:
    try:
        return parameters.as_optax()
    except Exception as error:  # the user's own code may raise anything
        raise UserError(f"optimizer: its as_optax() fails: {first_line(error)}") from error


def step_map(
    tx: Optimizer | StepMap,
    *,
    state: PyTree | None = None,
    count: int | None = None,
) -> StepMap:
    """One component of ``tx`` as a `StepMap` (a StepMap is taken as it is).

    ``tx`` is an optax pair, or a pytree of parameters with a method ``as_optax()``
    that gives one, such as a learned optimizer; its parameters are taken in float64.
    ``state``: the optimizer state for a parameter of shape (1,), whose shared part is
    frozen; by default the one that ``tx.init`` gives, with flags as they are after the
    first step. ``count``: sets every counter (an integer leaf that grows from step to step,
    a float one that grows by 1), and with it schedules and bias corrections. Leaves keep the
    precision that ``tx.init`` gives them for float64 parameters.

    Raises `UserError` for anything but an optimizer, for one that is not component-wise,
    does not act alike at every step or keeps its memory in other than real
    floating-point numbers, and for a ``state`` of another structure.
    """
    if isinstance(tx, StepMap):
        step = tx
    else:
        step = _initial_step_map(tx)
    if state is not None:
        step = dataclasses.replace(step, state=_conform(state, step.state))
    if count is not None:
        count = whole_number("count", count, minimum=0)
        step = dataclasses.replace(step, state=_set_counters(step, count))
    return step


def settle(
    tx: Optimizer | StepMap,
    gradient_scale: float = 1.0,
    *,
    alternating: bool = True,
    steps: int = 20_000,
    param: float = 0.0,
) -> PyTree:
    """The state of ``tx`` that a long history of gradients of one size leads to.

    ``gradient_scale`` is that size s. ``alternating``: gradients +s, −s, +s, … and the
    mean of the last two vectors h, the stationary state of a zero-mean gradient: odd
    moments are 0, even ones as under a constant |g| = s (for Adam: first moment 0, second
    moment s²). Otherwise the last state under the constant gradient s. ``param`` is held.
    Counters end at ``steps``.
    The result is a state for one component, to be given to `optdyn.dynamics.linearize`.
    Raises `UserError` for an optimizer that is not component-wise.

    >>> state = settle(optax.scale_by_rms(0.9), 0.5)
    >>> round(float(state.nu[0]), 12)
    0.25
    """
    gradient_scale, param = (
        finite_number("gradient_scale", gradient_scale),
        finite_number("param", param),
    )
    require_number("gradient_scale", gradient_scale, inclusive=True)
    steps = whole_number("steps", steps, minimum=2)
    step = step_map(tx)
    with double_precision():
        params = jnp.full((1,), param, jnp.float64)
        signs = np.where(np.arange(steps) % 2, -1.0 if alternating else 1.0, 1.0)

        def advance(before: PyTree, gradient: Float[Array, ""]) -> tuple[PyTree, None]:
            _, after = step.tx.update(gradient[None], before, params)
            return keep_precision(after, before), None

        @jax.jit
        def run(start: PyTree, gradients: Float[Array, " steps"]) -> tuple[PyTree, PyTree]:
            previous, _ = jax.lax.scan(advance, start, gradients[:-1])
            return previous, advance(previous, gradients[-1])[0]

        start = jax.tree.map(jnp.asarray, step.tx.init(params))
        previous, last = run(start, jnp.asarray(gradient_scale * signs))
        if not alternating:
            return last
        parts, treedef = jax.tree.flatten(last)
        for i, part in enumerate(jax.tree.leaves(previous)):
            if i in step.layout.memory:
                parts[i] = (parts[i] + part) / 2
        return jax.tree.unflatten(treedef, parts)


def state_vector(step: StepMap, h: object) -> Float[np.ndarray, " N"]:
    """``h`` as a state of ``step``. Raises `UserError` unless it is N finite numbers."""
    n = len(step.names)
    try:
        vector = np.asarray(h, np.float64)
    except (TypeError, ValueError):
        raise UserError(f"h: {type(h).__name__} is not allowed ({n} numbers)") from None
    if vector.shape != (n,):
        raise UserError(f"h: shape {vector.shape} is not allowed ({(n,)})")
    if not np.all(np.isfinite(vector)):
        raise UserError(f"h: not finite (allowed: {n} finite numbers)")
    return vector


def _initial_step_map(optimizer: Optimizer) -> StepMap:
    with double_precision():
        plain = isinstance(optimizer, optax.GradientTransformation)
        if not plain and not callable(getattr(optimizer, "as_optax", None)):
            raise UserError(
                f"optimizer: {type(optimizer).__name__} is not one (allowed: an "
                "optax.GradientTransformation, or parameters with a method as_optax())"
            )
        parameters = () if plain else to_float64(optimizer)
        build = _Fixed(hashable(optimizer)) if plain else _as_optax
        tx = build(parameters)
        require_componentwise(tx)
        try:
            state = initial_state(tx)
            layout = state_layout(tx, state)
        except UserError:
            raise
        except Exception as error:  # the user's own code may raise anything
            raise UserError(
                f"optimizer: cannot be run on one component: {first_line(error)} "
                "(allowed: optimizers that take parameters of shape (1,))"
            ) from error
        return StepMap(parameters, state, build, layout)


def _vector(parts: list[Array], positions: tuple[int, ...]) -> Float[Array, " N"]:
    chosen = [jnp.ravel(parts[i]).astype(jnp.float64) for i in positions]
    return jnp.concatenate(chosen) if chosen else jnp.zeros((0,), jnp.float64)


def _conform(state: PyTree, template: PyTree) -> PyTree:
    """``state`` with the template's precisions. Raises `UserError` if it does not fit."""
    structures: list[Any] = [jax.tree.structure(tree) for tree in (template, state)]
    shapes = [[np.shape(leaf) for leaf in jax.tree.leaves(tree)] for tree in (template, state)]
    if structures[0] == structures[1] and shapes[0] == shapes[1]:
        with double_precision(), contextlib.suppress(TypeError, ValueError):  # not numbers
            return jax.tree.map(_in_precision, state, template)
    raise UserError(
        "state: not a state of this optimizer for one component "
        "(allowed: what tx.init gives for a parameter of shape (1,), or settle(tx))"
    )


def _in_precision(leaf: Any, like: Array) -> Array:
    if jnp.issubdtype(like.dtype, jax.dtypes.extended):
        return jnp.asarray(leaf)
    given = np.asarray(leaf)
    narrow = jnp.issubdtype(given.dtype, jnp.floating) and given.itemsize < like.dtype.itemsize
    # A hyperparameter, say, that tx.init has rounded to the parameters' float32.
    if narrow and np.array_equal(given, np.asarray(like).astype(given.dtype)):
        return like
    return jnp.asarray(given, like.dtype)


def _set_counters(step: StepMap, count: int) -> PyTree:
    if step.layout.countdowns:
        raise UserError(
            f"count: the optimizer's {step.layout.countdowns[0]} counts down (allowed: state= "
            "with it as it is at the step wanted)"
        )
    parts, treedef = jax.tree.flatten(step.state)
    with double_precision():
        for i in step.layout.counters:
            whole = jnp.issubdtype(parts[i].dtype, jnp.integer)
            most = int((jnp.iinfo if whole else jnp.finfo)(parts[i].dtype).max)
            parts[i] = jnp.full_like(parts[i], min(count, most))
    return jax.tree.unflatten(treedef, parts)
