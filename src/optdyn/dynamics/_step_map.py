"""One component of any optax optimizer as a map ``h', Δx = F(h, g, x)``."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any, Protocol, TypeAlias, Unpack

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PyTree

from optdyn.dynamics._clockwork import Clockwork, clockwork, widened
from optdyn.dynamics._place import (
    PLACE,
    Place,
    Surroundings,
    gradient_tree,
    surroundings,
    with_leaves,
)
from optdyn.dynamics._remembered import Remembered
from optdyn.dynamics._separability import (
    TOLERANCE,
    cannot_be_run,
    hashable,
    keep_precision,
    require_componentwise,
)
from optdyn.dynamics._state_layout import StateLayout, initial_state, state_layout
from optdyn.errors import UserError, first_line, whole_number
from optdyn.precision import double_precision, to_float64

# Where one factor may couple components, they are looked at among others: an array of this shape.
AMONG_OTHERS = (3, 3)
CLOCKS: Remembered[Clockwork] = Remembered()
STATIC = {"static": True}


class HasOptax(Protocol):
    """A pytree of parameters that gives an optimizer."""

    def as_optax(self) -> optax.GradientTransformation: ...


Optimizer: TypeAlias = optax.GradientTransformation | HasOptax


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class StepMap:
    """``(h [N], g, x) -> (h' [N], Δx)``: one step of one component. Made by `step_map`.

    ``build(parameters)`` is the optimizer. A StepMap is a pytree, so that what is
    compiled for one serves all that differ in ``parameters``, ``state`` and ``around``
    alone: every checkpoint of a learned optimizer (`with_parameters`).

    The vector h holds the memory that ``layout`` names: the ``entries`` of the float leaves
    of the optimizer's state that belong to the component. Everything else in ``state``,
    counters, hyperparameters, running sums that all components share, is frozen at the value
    it has there, and the other components at what ``around`` says. Call it inside
    `optdyn.precision.double_precision`; jit, vmap and differentiation apply.

    ``alone``: it is one component by itself, of no training. Then one factor common to all
    would have no value; ``silent_up_to`` is the size of gradients below which none acts (inf:
    none ever does).
    """

    parameters: PyTree
    state: PyTree
    around: Surroundings
    entries: tuple[Int[np.ndarray, " k"], ...]
    build: Callable[[PyTree], optax.GradientTransformation] = dataclasses.field(metadata=STATIC)
    layout: StateLayout = dataclasses.field(metadata=STATIC)
    clock: Clockwork = dataclasses.field(metadata=STATIC)
    alone: bool = dataclasses.field(metadata=STATIC)
    silent_up_to: float = dataclasses.field(metadata=STATIC)

    @property
    def tx(self) -> optax.GradientTransformation:
        """The optimizer."""
        return self.build(self.parameters)

    @property
    def kind(self) -> tuple[Any, ...]:
        """What programs compiled for this step map depend on."""
        return (self.build, self.layout, self.clock)

    @property
    def h(self) -> Float[np.ndarray, " N"]:
        """The state vector that ``state`` holds."""
        with double_precision():
            return np.asarray(self.vector(self.state))

    @property
    def names(self) -> tuple[str, ...]:
        """One name an entry of h."""
        return self.layout.names

    @property
    def memory(self) -> tuple[int, ...]:
        """Positions of the float leaves of the state that belong to components."""
        return (*self.layout.memory, *self.layout.others)

    @property
    def counts(self) -> dict[int, int]:
        """Where each counter stands (its largest entry), by its position."""
        parts = jax.tree.leaves(self.state)
        return {i: int(np.max(np.asarray(parts[i]))) for i in self.clock.counters}

    @property
    def size(self) -> int:
        """How many numbers the whole training is: state and parameters; at least 1."""
        return max(sum(map(np.size, jax.tree.leaves((self.state, self.around.params)))), 1)

    @property
    def precision(self) -> float:
        """The unit roundoff of the least precise part of h."""
        parts = [jax.tree.leaves(self.state)[i] for i in self.layout.memory]
        return max([float(jnp.finfo(part.dtype).eps) for part in parts], default=2.0**-52)

    def with_parameters(self, parameters: PyTree) -> StepMap:
        """The same optimizer with other parameters, in its initial state."""
        with double_precision():
            wide = to_float64(parameters)
            state = initial_state(self.build(wide), self.around.params)
        return dataclasses.replace(self, parameters=wide, state=state)

    def among(self, params: PyTree, gradients: PyTree) -> StepMap:
        """The same component where all components have these values and gradients."""
        around = dataclasses.replace(self.around, params=params, gradients=gradients)
        return dataclasses.replace(self, around=around)

    def at_count(self, count: int, counters: tuple[int, ...] | None = None) -> StepMap:
        """With those counters (default: all) at ``count``, or at the most they can hold.

        Raises `UserError` where one counts down.
        """
        if self.clock.countdowns:
            raise UserError(
                f"count: the optimizer's {self.clock.countdowns[0]} counts down, so no count sets "
                "it (allowed: state= of the step wanted)"
            )
        parts, moved = jax.tree.leaves(self.state), {}
        with double_precision():
            for i in self.clock.counters if counters is None else counters:
                whole = jnp.issubdtype(parts[i].dtype, jnp.integer)
                most = int((jnp.iinfo if whole else jnp.finfo)(parts[i].dtype).max)
                moved[i] = jnp.full_like(parts[i], min(count, most))
        return dataclasses.replace(self, state=with_leaves(self.state, moved))

    def fresh_state(self, params: PyTree) -> PyTree:
        """``state`` with the memory that components of ``params`` start with."""
        start = jax.tree.leaves(initial_state(self.tx, params))
        return with_leaves(self.state, {i: start[i] for i in self.memory})

    def __call__(
        self,
        h: Float[Array, " N"],
        g: Float[Array, ""] | float,
        x: Float[Array, ""] | float | None = None,
    ) -> tuple[Float[Array, " N"], Float[Array, ""]]:
        x = self.around.of(self.around.params) if x is None else x
        updates, after = self.update(self.state_with(h), g, x)
        return self.vector(after), self.around.of(updates).astype(jnp.float64)

    def update(
        self, state: PyTree, g: Float[Array, ""] | float, x: Float[Array, ""] | float
    ) -> tuple[PyTree, PyTree]:
        """One step of the optimizer, all components: updates and the state after it."""
        gradients = self.around.put(self.around.gradients, g)
        return self.update_all(gradients, state, self.around.put(self.around.params, x))

    def update_all(self, gradients: PyTree, state: PyTree, params: PyTree) -> tuple[PyTree, PyTree]:
        """The optimizer's own update, counters as wide as `Clockwork.wide` says."""
        return self.tx.update(gradients, widened(state, self.clock), params)

    def advance(
        self, state: PyTree, g: Float[Array, ""] | float, x: Float[Array, ""] | float
    ) -> tuple[PyTree, Float[Array, ""]]:
        """One step with counters and all: the state after it (in its precision) and Δx."""
        updates, after = self.update(state, g, x)
        return keep_precision(after, state), self.around.of(updates).astype(jnp.float64)

    def vector(self, state: PyTree) -> Float[Array, " N"]:
        """The component's memory within a state of the optimizer."""
        parts = jax.tree.leaves(state)
        pairs = zip(self.layout.memory, self.entries, strict=True)
        chosen = [jnp.ravel(jnp.asarray(parts[i]))[at].astype(jnp.float64) for i, at in pairs]
        return jnp.concatenate(chosen) if chosen else jnp.zeros((0,), jnp.float64)

    def state_with(self, h: Float[Array, " N"]) -> PyTree:
        """``state`` with the vector h."""
        parts, moved, start = jax.tree.leaves(self.state), {}, 0
        for i, at in zip(self.layout.memory, self.entries, strict=True):
            part = jnp.asarray(parts[i])
            own = h[start : start + len(at)].astype(part.dtype)
            moved[i] = jnp.ravel(part).at[at].set(own).reshape(part.shape)
            start += len(at)
        return with_leaves(self.state, moved)


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


def step_map(tx: Optimizer | StepMap, **place: Unpack[Place]) -> StepMap:
    """One component of ``tx`` as a `StepMap`; of a StepMap the same one, elsewhere if asked.

    ``tx`` is an optax pair (any object with its two functions), or a pytree of parameters with a
    method ``as_optax()`` that gives one, such as a learned optimizer; its parameters are taken
    in float64. Which component, in which training: see `Place`. Without ``params`` it is one
    component by itself, its ``state`` one for a parameter of shape (1,). Flags in the initial
    state are as after the first step. ``count`` sets every counter (an integer leaf that grows
    from step to step, a float one that grows by 1), and with it schedules and bias corrections.
    Parameters are taken in float64; leaves of the state have the precision that ``tx.init`` then
    gives them.

    Without ``params``, where one factor couples the components but not at small gradients
    (clipping by a norm), the component is one of nine alike, and so is its state.

    Raises `UserError` for anything but an optimizer, for one that is not component-wise,
    draws random numbers, acts differently at each step in no cycle or has a memory in other
    than real floating-point numbers, for a ``state`` of another structure, and as
    `optdyn.dynamics.Place` says.
    """
    unknown = sorted(set(place) - PLACE)
    if unknown:
        raise UserError(f"{unknown[0]}: unknown (allowed: {', '.join(sorted(PLACE))})")
    step = _moved(tx, place) if isinstance(tx, StepMap) else _initial_step_map(tx, place)
    state, count = place.get("state"), place.get("count")
    if state is not None:
        step = dataclasses.replace(step, state=_conform(state, step.state))
    if count is not None:
        step = step.at_count(whole_number("count", count, minimum=0))
    return step


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


def _moved(step: StepMap, place: Place) -> StepMap:
    if any(place.get(name) is not None for name in ("params", "leaf", "index")):
        raise UserError(
            "params, leaf and index: not allowed with a StepMap, which has its own (allowed: "
            "the optimizer itself, or step_map(tx, params=..., leaf=...))"
        )
    if place.get("gradient") is None:
        return step
    with double_precision():
        gradients = gradient_tree(place["gradient"], step.around.params)
    return step.among(step.around.params, gradients)


def _initial_step_map(optimizer: Optimizer, place: Place) -> StepMap:
    with double_precision():
        parameters, build = _built(optimizer)
        tx = build(parameters)
        alone, silent_up_to = place.get("params") is None, np.inf
        if alone:
            found = require_componentwise(tx)
            silent_up_to = found.silent_up_to
            if found.response > TOLERANCE:
                zeros = np.zeros(AMONG_OTHERS)
                place = Place(params=zeros, gradient=place.get("gradient"))
        around = surroundings(place)
        try:
            state = initial_state(tx, around.params)
            clock = _clockwork(build, parameters, state, around.params)
            layout, entries = state_layout(tx, state, around, clock.counters)
        except UserError:
            raise
        except Exception as error:  # the user's own code may raise anything
            on = "one component" if alone else "params"
            allowed = "optimizers that take parameters of shape (1,), or those that params= gives"
            raise cannot_be_run(on, error, around.params, allowed) from error
        return StepMap(
            parameters=parameters,
            state=state,
            around=around,
            entries=entries,
            build=build,
            layout=layout,
            clock=clock,
            alone=alone,
            silent_up_to=silent_up_to,
        )


def _built(optimizer: Optimizer) -> tuple[PyTree, Callable[[PyTree], optax.GradientTransformation]]:
    """The optimizer's parameters, and what makes an optax pair of them."""
    if callable(getattr(optimizer, "as_optax", None)):
        return to_float64(optimizer), _as_optax
    pair = [getattr(optimizer, name, None) for name in ("init", "update")]
    if isinstance(optimizer, type) or not all(map(callable, pair)):
        raise UserError(
            f"optimizer: {type(optimizer).__name__} is not one (allowed: an "
            "optax.GradientTransformation, or parameters with a method as_optax())"
        )
    if not isinstance(optimizer, optax.GradientTransformation):  # such as optax.MultiSteps
        optimizer = optax.GradientTransformation(*pair)
    return (), _Fixed(hashable(optimizer))


def _clockwork(build: Any, parameters: PyTree, state: PyTree, params: PyTree) -> Clockwork:
    """The optimizer's clockwork, remembered: it is the same whatever the values."""

    def kind(tree: PyTree) -> tuple[Any, ...]:
        leaves, treedef = jax.tree.flatten(tree)
        return (treedef, *((np.shape(leaf), str(jnp.result_type(leaf))) for leaf in leaves))

    key = (build, kind(parameters), kind(state), kind(params))
    return CLOCKS.recall(key, lambda: clockwork(build(parameters), state, params))


def _conform(state: PyTree, template: PyTree) -> PyTree:
    """``state`` with the template's precisions. Raises `UserError` if it does not fit."""
    structures: list[Any] = [jax.tree.structure(tree) for tree in (template, state)]
    shapes = [[np.shape(leaf) for leaf in jax.tree.leaves(tree)] for tree in (template, state)]
    if structures[0] == structures[1] and shapes[0] == shapes[1]:
        with double_precision(), contextlib.suppress(TypeError, ValueError):  # not numbers
            return jax.tree.map(_in_precision, state, template)
    raise UserError(
        "state: not a state of this optimizer for these parameters (allowed: tx.init(params) with "
        "params= those parameters, or without params= for one of shape (1,); settle(tx))"
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
