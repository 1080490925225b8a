"""What components do to each other by way of a few numbers that they share."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from optdyn.dynamics._state_layout import state_layout
from optdyn.errors import UserError

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int, PyTree

    from optdyn.dynamics._step_map import StepMap

# So many components are sampled on each side of a common factor, fewer of each part of the
# component's own leaf; of this rank it may be.
SAMPLED, NEARBY, RANK = 6, 3, 3
# So many moves of a training are one call of a compiled program.
MOVES = 8
PREDICTED = 1e-6

Tangents: TypeAlias = Callable[..., tuple["Array", "Array"]]
"""`tangents`, compiled."""


def common_part(
    run: Tangents, step: StepMap, z: np.ndarray, outputs: int
) -> Float[np.ndarray, "outputs inputs"]:
    inputs, count = len(z), components(step)
    # Own inputs, with the gradient of nobody else.
    nobody, none = np.full(inputs, count), np.zeros(count)
    _, by_own = _moves(run, step, z, np.eye(inputs), nobody, none)
    affected = np.any(by_own[:count] != 0.0, axis=1)
    columns, rows, more = _samples(step, affected)
    # And moved together: all but this component and the rows, by which the effect is predicted.
    together = np.random.default_rng(5).uniform(0.5, 1.5, count)
    together[[_own_position(step), *rows]] = 0.0
    m = len(columns)
    which = np.append(columns, count)
    to_own, to_all = _moves(run, step, z, np.zeros((m + 1, inputs)), which, together)
    at, and_at = (
        np.concatenate([np.zeros(0, np.int64), *(_positions(step, int(c)) for c in sample)])
        for sample in (rows, more)
    )
    J_iK, J_Ji, J_JK = to_own[:outputs, :m], by_own[at], to_all[at, :m]
    if not J_JK.size:
        raise UserError(_too_coupled())
    inverse = np.linalg.pinv(J_JK, rcond=1e-9)
    pairs = (
        (to_all[and_at, :m] @ inverse @ J_Ji, by_own[and_at]),
        (J_iK @ inverse @ to_all[at, m], to_own[:outputs, m]),
    )
    if np.linalg.matrix_rank(J_JK, rtol=1e-9) > RANK or any(
        np.any(np.abs(predicted - seen) > PREDICTED * np.max(np.abs(seen), initial=0.0))
        for predicted, seen in pairs
    ):
        raise UserError(_too_coupled())
    return J_iK @ inverse @ J_Ji


def _too_coupled() -> str:
    return (
        "optimizer: not component-wise here: the components are coupled by more than a few "
        "common factors, or those of a leaf are too few to tell (allowed: clipping by norm, trust "
        "ratios, leaves of three components and more; for any optimizer: optdyn.closed_loop)"
    )


def _moves(
    run: Tangents,
    step: StepMap,
    z: np.ndarray,
    dz: Float[np.ndarray, "K inputs"],
    which: Int[np.ndarray, " K"],
    together: Float[np.ndarray, " components"],
) -> tuple[Float[np.ndarray, "outputs K"], Float[np.ndarray, "all K"]]:
    """`tangents` of own outputs and of all; the last move is ``together`` too."""
    many = np.arange(len(dz)) == len(dz) - 1
    short = -len(dz) % MOVES
    dz, which = np.pad(dz, ((0, short), (0, 0))), np.pad(which, (0, short))
    many = np.pad(many.astype(float), (0, short))
    parts = [
        run(step, z, dz[k : k + MOVES], which[k : k + MOVES], together, many[k:][:MOVES])
        for k in range(0, len(dz), MOVES)
    ]
    own, everyone = (np.concatenate([np.asarray(p[side]) for p in parts]) for side in (0, 1))
    kept = slice(len(dz) - short)
    # Others at a second moment of zero have no derivative.
    return own[kept].T, np.nan_to_num(everyone[kept].T, posinf=0.0, neginf=0.0)


def tangents(
    step: StepMap,
    z: Array,
    dz: Float[Array, "K inputs"],
    others: Int[Array, " K"],
    together: Float[Array, " components"],
    many: Float[Array, " K"],
) -> tuple[Array, Array]:
    """Tangents of own outputs and of all (`_positions`), along dz and other gradients.

    Those are of one of the ``others`` and of ``many`` times all that move ``together``.
    """
    flat, unravel = ravel_pytree(step.around.gradients)
    memory = memory_of(step)
    own_memory = len(memory) - len(step.layout.shared)

    def one(direction: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        def moved(t: Array) -> tuple[Array, Array]:
            all_moved = flat + t * direction[2] * together
            gradients = unravel(all_moved.at[direction[1]].add(t))
            at = z + t * direction[0]
            own, updates, floats = whole_step(step, at, memory, gradients, step.around.params)
            outputs = [ravel_pytree(updates)[0], *map(jnp.ravel, floats[:own_memory])]
            return own, jnp.concatenate([part.astype(jnp.float64) for part in outputs])

        found: tuple[Array, Array] = jax.jvp(moved, (jnp.float64(0.0),), (jnp.float64(1.0),))[1]
        return found

    return jax.lax.map(one, (dz, others, many))


def _samples(
    step: StepMap, affected: np.ndarray
) -> tuple[Int[np.ndarray, " K"], Int[np.ndarray, " J"], Int[np.ndarray, " L"]]:
    """Three samples of other components, apart: columns, rows, and what they are checked with."""
    sizes = [np.size(leaf) for leaf in jax.tree.leaves(step.around.params)]
    starts = np.cumsum([0, *sizes])
    own, here = _own_position(step), int(step.around.index)
    shape = np.shape(jax.tree.leaves(step.around.params)[step.around.leaf])
    leaf = np.arange(sizes[step.around.leaf])
    index, at = np.unravel_index(here, shape), np.unravel_index(leaf, shape)
    slices = [leaf[at[k] == index[k]] for k in range(len(shape)) if len(shape) > 1]
    pools = [(own - here + pool, NEARBY) for pool in (*slices, leaf)]
    reached = [np.sum(affected[a:b]) for a, b in itertools.pairwise(starts)]
    reached[step.around.leaf] = 0
    other = int(np.argmax(reached))
    if reached[other]:
        pools.append((np.arange(starts[other], starts[other + 1]), SAMPLED))
    rng, taken = np.random.default_rng(3), [own]
    samples: tuple[list[int], list[int], list[int]] = ([], [], [])
    for pool, most in pools:
        left = rng.permutation(np.setdiff1d(pool[affected[pool]], taken))
        m = min(most, max(len(left) // len(samples), 1))
        for k, sample in enumerate(samples):
            sample += left[k * m : (k + 1) * m].tolist()
        taken += left[: m * len(samples)].tolist()
    columns, rows, more = (np.array(sample, np.int64) for sample in samples)
    return columns, rows, more


def _positions(step: StepMap, component: int) -> Int[np.ndarray, " k"]:
    """Where the outputs of a component (counted through the whole tree) are among all outputs.

    All outputs: the updates, then the float leaves of the state that belong to components.
    """
    sizes = [np.size(leaf) for leaf in jax.tree.leaves(step.around.params)]
    ends = np.cumsum(sizes)
    leaf = int(np.searchsorted(ends, component, side="right"))
    index = np.asarray(component - (ends[leaf] - sizes[leaf]), np.int64)
    around = dataclasses.replace(step.around, leaf=leaf, index=index)
    layout, entries = state_layout(step.tx, step.state, around, step.clock.counters)
    leaves = jax.tree.leaves(step.state)
    places = (*step.layout.memory, *step.layout.others)
    starts = sum(sizes) + np.cumsum([0, *(np.size(leaves[i]) for i in places)])
    found = [starts[places.index(i)] + at for i, at in zip(layout.memory, entries, strict=True)]
    return np.concatenate([[component], *found]).astype(np.int64)


def _own_position(step: StepMap) -> int:
    """The component, counted through the whole tree."""
    leaves = jax.tree.leaves(step.around.params)[: step.around.leaf]
    return sum(np.size(leaf) for leaf in leaves) + int(step.around.index)


def components(step: StepMap) -> int:
    return sum(np.size(leaf) for leaf in jax.tree.leaves(step.around.params))


def whole_step(
    step: StepMap, z: Array, memory: list[Array], gradients: PyTree, params: PyTree
) -> tuple[Array, PyTree, list[Array]]:
    """One step of the whole training: own outputs, all updates, the float leaves of the state.

    ``memory`` replaces those float leaves (see `_floats`); z is the component's own.
    """
    places = _floats(step)
    parts, treedef = jax.tree.flatten(step.state)
    for i, value in zip(places, memory, strict=True):
        parts[i] = value
    here = dataclasses.replace(step, state=jax.tree.unflatten(treedef, parts))
    around, n = step.around, len(z) - 2
    updates, after = step.update_all(
        here.state_with(z[:n]), around.put(gradients, z[n]), around.put(params, z[n + 1])
    )
    floats = [jax.tree.leaves(after)[i] for i in places]
    return jnp.append(step.vector(after), around.of(updates)), updates, floats


def _floats(step: StepMap) -> tuple[int, ...]:
    """Positions of float leaves of the state: the components' memory, then what they share."""
    return (*step.layout.memory, *step.layout.others, *step.layout.shared)


def memory_of(step: StepMap) -> list[Array]:
    parts = jax.tree.leaves(step.state)
    return [jnp.asarray(parts[i]) for i in _floats(step)]
