"""What of an optimizer's state is one component's memory, what counts steps, what stays."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Int, PyTree

from optdyn.dynamics._place import Surroundings, leaf_names
from optdyn.errors import UserError, first_line
from optdyn.inner_loop import with_later_leaves

# So far a gradient is moved to see which entries of the state answer.
MOVE = 0.37


@dataclasses.dataclass(frozen=True)
class StateLayout:
    """Positions in the flattened state.

    ``memory``: the float leaves with entries that belong to the component; ``names`` has a name
    for each such entry. ``others``: float leaves that belong to other leaves of the parameters.
    ``shared``: float leaves that belong to none (hyperparameters, norms, sums over everything).
    """

    memory: tuple[int, ...]
    names: tuple[str, ...]
    others: tuple[int, ...]
    shared: tuple[int, ...]


def initial_state(tx: optax.GradientTransformation, params: PyTree) -> PyTree:
    """What ``tx.init`` gives, but flags as they are after the first step.

    (Such as "is this the first step".) Call it inside `optdyn.precision.double_precision`.
    """
    state = jax.tree.map(jnp.asarray, whole_state(tx, params))
    if not any(_is_flag(leaf) for leaf in jax.tree.leaves(state)):
        return state
    zeros = jax.tree.map(jnp.zeros_like, params)
    _, after = tx.update(zeros, state, params)
    return jax.tree.map(lambda old, new: jnp.asarray(new) if _is_flag(old) else old, state, after)


def whole_state(tx: optax.GradientTransformation, params: PyTree) -> PyTree:
    """What ``tx.init`` gives, with leaves that the first step adds, at zero."""
    state = tx.init(params)
    after = jax.eval_shape(tx.update, params, state, params)[1]
    return with_later_leaves(state, after)


def state_layout(
    tx: optax.GradientTransformation, state: PyTree, around: Surroundings, counters: tuple[int, ...]
) -> tuple[StateLayout, tuple[Int[np.ndarray, " k"], ...]]:
    """Which float leaves of ``state`` are what, and the component's entries of each memory leaf.

    A leaf belongs to a leaf of the parameters when its shape follows it; entries are found by
    the shape and, where that does not tell, by what answers the component's gradient.
    ``counters`` are left out. Raises `UserError` where memory is complex, and where more
    answers one component than can be its own.
    """
    names = ["state" if name == "params" else name for name in leaf_names(state)]
    count = len(jax.tree.leaves(around.params))
    own = _following(tx, state, around, [around.leaf])
    everyone = _following(tx, state, around, range(count)) if count > 1 else own
    answers: list[np.ndarray] | None = None
    memory: dict[int, np.ndarray] = {}
    others, shared, shown = list[int](), list[int](), list[str]()
    for i, leaf in enumerate(jax.tree.leaves(state)):
        if own[i] and jnp.issubdtype(leaf.dtype, jnp.complexfloating):
            raise UserError(
                f"optimizer: its {names[i]} is {leaf.dtype} (allowed: memory in real numbers)"
            )
        if i in counters or not jnp.issubdtype(leaf.dtype, jnp.floating):
            continue
        if not own[i]:
            (others if everyone[i] else shared).append(i)
            continue
        found = _entries_by_shape(leaf.shape, around)
        if found is None:
            answers = _answers(tx, state, around) if answers is None else answers
            found = answers[i]
        memory[i] = found
        shown += [f"{names[i]}[{k}]" for k in range(len(found))] if len(found) != 1 else [names[i]]
    layout = StateLayout(tuple(memory), tuple(shown), tuple(others), tuple(shared))
    return layout, tuple(memory.values())


def _following(
    tx: optax.GradientTransformation, state: PyTree, around: Surroundings, leaves: Any
) -> list[bool]:
    """For each leaf of ``state``: whether its shape follows that of those ``leaves``."""
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(state)]
    params, treedef = jax.tree.flatten(around.params)
    wider = [jax.ShapeDtypeStruct(jnp.shape(p), p.dtype) for p in params]
    for k in leaves:
        shape = wider[k].shape
        longer = (shape[0] + 1, *shape[1:]) if shape else (1,)
        wider[k] = jax.ShapeDtypeStruct(longer, params[k].dtype)
    try:
        after = jax.tree.leaves(jax.eval_shape(tx.init, jax.tree.unflatten(treedef, wider)))
        if len(after) == len(shapes):
            return [a.shape != b for a, b in zip(after, shapes, strict=True)]
    except Exception:  # an optimizer made for parameters of these shapes alone
        pass
    return _named_alike(state, around, leaves)


def _named_alike(state: PyTree, around: Surroundings, leaves: Any) -> list[bool]:
    """As `_following`, by the path: it ends as that of a leaf of the parameters does."""
    params = jax.tree_util.tree_leaves_with_path(around.params)
    wanted = [(tuple(params[k][0]), jnp.shape(params[k][1])) for k in leaves]
    return [
        any(
            tuple(path[len(path) - len(end) :]) == end and jnp.shape(leaf) == shape
            for end, shape in wanted
        )
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    ]


def _entries_by_shape(shape: tuple[int, ...], around: Surroundings) -> np.ndarray | None:
    """The component's entries of a leaf whose shape holds that of the parameters, if one does."""
    own = jnp.shape(jax.tree.leaves(around.params)[around.leaf])
    n, size, index = math.prod(own), math.prod(shape), int(around.index)
    if sum(np.size(leaf) for leaf in jax.tree.leaves(around.params)) == 1:
        return np.arange(size)
    first = shape[: len(own)] == own
    last = shape[len(shape) - len(own) :] == own
    if first and (not last or n == size):
        return index * (size // n) + np.arange(size // n)
    if last and not first:
        return index + n * np.arange(size // n)
    return None


def _answers(
    tx: optax.GradientTransformation, state: PyTree, around: Surroundings
) -> list[np.ndarray]:
    """The entries of each leaf that a step changes otherwise when the component's gradient is."""
    rng = np.random.default_rng(0)
    gradients = jax.tree.map(
        lambda p: jnp.asarray(0.1 * rng.normal(size=jnp.shape(p))).astype(p.dtype), around.params
    )
    moved = around.put(gradients, around.of(gradients) + MOVE)
    try:
        one, other = (tx.update(g, state, around.params)[1] for g in (gradients, moved))
    except Exception as error:  # the user's own code may raise anything
        raise UserError(
            f"optimizer: cannot be run on these parameters: {first_line(error)} "
            "(allowed: tx.init(params) and tx.update(gradients, state, params))"
        ) from error
    found = []
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        if not jnp.issubdtype(a.dtype, jnp.floating):
            found.append(np.zeros(0, np.int64))
            continue
        changed = np.flatnonzero(np.ravel(np.asarray(a) != np.asarray(b)))
        if len(changed) > 1 and len(changed) == a.size:
            raise UserError(
                "optimizer: not component-wise: every entry of a state of shape "
                f"{a.shape} answers one component (allowed: optimizers that treat each component "
                "by itself; for any other: optdyn.closed_loop)"
            )
        found.append(changed)
    return found


def _is_flag(leaf: Any) -> bool:
    return bool(leaf.dtype == np.bool_ and leaf.ndim == 0)
