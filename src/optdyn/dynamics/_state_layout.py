"""What of an optimizer's state is its memory, what counts steps, and what stays as it is."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from optdyn.dynamics._separability import keep_precision
from optdyn.errors import UserError
from optdyn.random_streams import stream

if TYPE_CHECKING:
    import optax
    from jaxtyping import Array, Float, PyTree

STEPS = 2000
"""Longer cycles of steps are not found."""
STEP_NUMBERS = np.arange(STEPS + 1)


@dataclasses.dataclass(frozen=True)
class StateLayout:
    """Positions in the flattened state of one component.

    ``memory``: the float leaves that exist once a component; ``names`` has a name for each
    entry of them. ``counters``: the integer leaves that grow from step to step, and the float
    ones that grow by 1 whatever the gradient. ``countdowns``: names of integers that fall.
    """

    memory: tuple[int, ...]
    names: tuple[str, ...]
    counters: tuple[int, ...]
    countdowns: tuple[str, ...]


def initial_state(tx: optax.GradientTransformation) -> PyTree:
    """What ``tx.init`` gives for one component, but flags as they are after the first step.

    (Such as "is this the first step".) Call it inside `optdyn.precision.double_precision`.
    """
    params = jnp.zeros((1,), jnp.float64)
    state = jax.tree.map(jnp.asarray, tx.init(params))
    if not any(_is_flag(leaf) for leaf in jax.tree.leaves(state)):
        return state
    _, after = tx.update(params, state, params)
    return jax.tree.map(lambda old, new: jnp.asarray(new) if _is_flag(old) else old, state, after)


def state_layout(tx: optax.GradientTransformation, state: PyTree) -> StateLayout:
    """Which leaves of ``state``, one component's, are what.

    Raises `UserError` where a step does not do the same thing each time (it acts at every
    k-th one alone, say), and where memory is not held in real floating-point numbers.
    """
    # A leaf belongs to the component when it grows with the number of components.
    wider = jax.tree.leaves(jax.eval_shape(tx.init, jax.ShapeDtypeStruct((2,), jnp.float64)))
    paths = jax.tree_util.tree_flatten_with_path(state)[0]
    clocks = _float_counters(tx, state)
    memory, discrete, names = [], {}, []
    for i, ((path, leaf), wide) in enumerate(zip(paths, wider, strict=True)):
        own = leaf.shape != wide.shape
        name = jax.tree_util.keystr(path, simple=True, separator=".") or "state"
        if own and jnp.issubdtype(leaf.dtype, jnp.complexfloating):
            raise UserError(
                f"optimizer: its {name} is {leaf.dtype} (allowed: memory in real numbers)"
            )
        if own and jnp.issubdtype(leaf.dtype, jnp.floating) and i not in clocks:
            memory.append(i)
            names += [f"{name}[{k}]" for k in range(leaf.size)] if leaf.size > 1 else [name]
        elif (own or leaf.ndim == 0) and leaf.size and _is_discrete(leaf):
            discrete[i] = name
    counters, countdowns = _counters(tx, state, discrete)
    return StateLayout(
        tuple(memory), tuple(names), tuple(sorted(clocks + counters)), tuple(countdowns)
    )


def _float_counters(tx: optax.GradientTransformation, state: PyTree) -> list[int]:
    """The float leaves that every step makes larger by 1."""
    params = jnp.zeros((1,), jnp.float64)
    _, after = tx.update(params, state, params)
    pairs = zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True)
    stepped = [
        i
        for i, (old, new) in enumerate(pairs)
        if jnp.issubdtype(old.dtype, jnp.floating) and old.size and np.all(new - old == 1)
    ]
    return [
        i
        for i, *histories in zip(stepped, *_histories(tx, state, tuple(stepped)), strict=True)
        if all(np.all(values[0].T[..., None] + STEP_NUMBERS == values.T) for values in histories)
    ]


def _counters(
    tx: optax.GradientTransformation, state: PyTree, discrete: dict[int, str]
) -> tuple[list[int], list[str]]:
    """Those of the ``discrete`` leaves that grow, and the names of those that fall.

    Raises `UserError` as `state_layout` says.
    """
    constant, other = _histories(tx, state, tuple(discrete))
    counters, countdowns = [], []
    for (i, name), values, others in zip(discrete.items(), constant, other, strict=True):
        if not np.array_equal(values, others):
            raise UserError(
                f"optimizer: its {name} ({values.dtype}) depends on the gradients "
                "(allowed: memory in floating-point numbers)"
            )
        changes = np.diff(values.astype(np.int64), axis=0)
        falls = np.flatnonzero(np.any(changes < 0, axis=tuple(range(1, changes.ndim))))
        # A flag may fall once, after the first step.
        allowed = 1 if values.dtype == bool else 0
        if len(falls) and not np.any(changes > 0) and values.dtype != bool:
            countdowns.append(name)
        elif len(falls) > allowed:
            raise UserError(
                f"optimizer: not the same at every step: its {name} starts anew after "
                f"{falls[allowed] + 1} steps (allowed: optimizers that act alike at each step; "
                "of one inside another that acts at every k-th step, the inner one)"
            )
        if values.dtype != bool and np.any(values[-1] > values[0]):
            counters.append(i)
    return counters, countdowns


def _histories(
    tx: optax.GradientTransformation, state: PyTree, positions: tuple[int, ...]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The leaves at ``positions``, at the start and after each step: [steps + 1, ...].

    First under a constant gradient, then under a random one.
    """
    if not positions:
        return [], []
    params = jnp.zeros((1,), jnp.float64)

    def chosen(tree: PyTree) -> list[Array]:
        leaves = jax.tree.leaves(tree)
        return [leaves[i] for i in positions]

    def advance(before: PyTree, gradient: Float[Array, ""]) -> tuple[PyTree, list[Array]]:
        _, after = tx.update(gradient[None], before, params)
        after = keep_precision(after, before)
        return after, chosen(after)

    @jax.jit
    def run(gradients: Float[Array, " steps"]) -> list[Array]:
        return jax.lax.scan(advance, state, gradients)[1]

    def history(gradients: Float[Array, " steps"]) -> list[np.ndarray]:
        pairs = zip(chosen(state), run(gradients), strict=True)
        return [np.concatenate([np.asarray(a)[None], np.asarray(b)]) for a, b in pairs]

    drawn = jax.random.normal(stream(0, "state layout"), (STEPS,), jnp.float64)
    return history(jnp.ones(STEPS, jnp.float64)), history(drawn)


def _is_flag(leaf: Any) -> bool:
    return bool(leaf.dtype == np.bool_ and leaf.ndim == 0)


def _is_discrete(leaf: Any) -> bool:
    return bool(jnp.issubdtype(leaf.dtype, jnp.integer) or leaf.dtype == np.bool_)
