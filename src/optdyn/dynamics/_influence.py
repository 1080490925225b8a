"""What the other components of a training do to one, and it to them, at an operating point."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int, PyTree

from optdyn.dynamics._jacobians import Inputs, Jacobian, value_and_jacobian
from optdyn.dynamics._place import with_leaves
from optdyn.dynamics._remembered import compiled
from optdyn.dynamics._separability import NotComponentwise
from optdyn.dynamics._state_layout import state_layout
from optdyn.dynamics._step_map import StepMap
from optdyn.errors import UserError
from optdyn.precision import double_precision

# What treats each component by itself has no influence at all, not even by rounding.
NOTHING = 1e-14
# The whole training is moved by a vector of this length, to see more than the point itself.
KICK = 1e-3
# Gradients times this meet no clip.
TINY = 1e-6
# So many components are sampled on each side of a common factor, fewer of each part of the
# component's own leaf; of this rank it may be.
SAMPLED, NEARBY, RANK = 6, 3, 3
# So many moves of a training are one call of a compiled program.
MOVES = 8
PREDICTED = 1e-6
TURNING = (
    "the update of a component depends on others, as in Muon, Shampoo and centred gradients",
    "leaves that are treated component by component",
)
TOO_COUPLED = (
    "the components are coupled by more than a few common factors, or those of a leaf are too few "
    "to tell",
    "clipping by norm, trust ratios, leaves of three components and more",
)


def hold_common_factor(step: StepMap, z: Inputs, jacobian: Jacobian) -> tuple[Jacobian, str]:
    """``jacobian`` at z = [h, g, x] less what acts by way of a factor common to others.

    And that factor in words, "" for none: it is held at its value.

    Of outputs i and inputs j (gradients, parameters) of different components the Jacobian is then
    a product of few columns and rows; with those of sampled components, J_ii − J_iK J_JK⁻¹ J_Ji is
    the derivative at a fixed factor. Clipping by a norm below its threshold takes nothing. Samples
    are of what the component acts on: in each slice of its leaf that it is in, in the leaf, and
    in one other leaf. A factor may belong to one of these.

    Raises `UserError` where components turn each other's updates (Muon, centred gradients), or
    are coupled by more than a few numbers.
    """
    if _components(step) == 1:
        return jacobian, ""
    with double_precision():
        if not _coupled(step, z, jacobian):
            return jacobian, ""
        _require_no_turning(step, z)
        if step.alone:
            raise UserError(
                "operating point: one factor common to all components acts here, as in clipping "
                f"by norm and in trust ratios (allowed: gradients of up to {step.silent_up_to:g}; "
                "or params=, state=, gradient= and leaf= of a training, where it has a value)"
            )
        held = jacobian - _common_part(step, z, len(jacobian))
        return held, _in_words(step, z, held)


def _coupled(
    step: StepMap, z: Inputs, jacobian: Jacobian, kicks: tuple[float, ...] = (0.0, KICK)
) -> bool:
    size = np.max(np.abs(jacobian), initial=0.0)
    for kick in kicks:
        moved = _kicked(step, z, kick)
        found = _influence(*moved, jax.tree.map(_some_tangent, _point(*moved)))
        inwards, outwards = map(np.asarray, found)
        # A NaN of the component's own at the point itself would have been refused before.
        if np.any(np.abs(inwards) > NOTHING * size) or outwards > NOTHING * size:
            return True
        if kick == 0.0 and np.any(np.isnan(inwards)):
            return True
    return False


def _kicked(step: StepMap, z: Inputs, kick: float) -> tuple[StepMap, Inputs]:
    """The whole training moved by about ``kick``, everything upwards (second moments too)."""
    if kick == 0.0:
        return step, z
    rng = np.random.default_rng(1)
    each = kick / np.sqrt(_components(step))

    def moved(leaf: Array) -> Array:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        return leaf + jnp.asarray(each * rng.uniform(0.5, 1.5, np.shape(leaf))).astype(leaf.dtype)

    parts, around = jax.tree.leaves(step.state), step.around
    state = with_leaves(step.state, {i: moved(jnp.asarray(parts[i])) for i in step.memory})
    kicked = dataclasses.replace(step, state=state).among(
        jax.tree.map(moved, around.params), jax.tree.map(moved, around.gradients)
    )
    return kicked, z + each * rng.uniform(0.5, 1.5, len(z))


def _point(step: StepMap, z: Array | Inputs) -> tuple[Any, ...]:
    """All that a step of the whole training acts on."""
    return z, _memory(step), step.around.gradients, step.around.params


@compiled
def _influence(step: StepMap, z: Array, moves: tuple[Any, ...]) -> tuple[Array, Array]:
    """What a move of all others does to own outputs [N+1], and the most an own one does to them.

    ``moves``: `_some_tangent` of all of `_point`, drawn outside as that takes long to compile.
    What all share counts where it then acts: a norm that is only written down does not.
    """
    point = _point(step, z)
    still = jax.tree.map(_no_tangent, point)
    moving = jax.tree.map(
        lambda none, move: none if none.dtype == jax.dtypes.float0 else move, still, moves
    )
    shared = len(point[1]) - len(step.layout.shared)
    moving_memory = [*moving[1][:shared], *still[1][shared:]]

    def outputs(*point: Any) -> tuple[Array, PyTree, list[Array]]:
        return _whole_step(step, *point)

    inwards = jax.jvp(outputs, point, (still[0], moving_memory, *moving[2:]))[1][0]
    _, updates, floats = jax.jvp(outputs, point, (moving[0], *still[1:]))[1]
    floats, passed = floats[:shared], floats[shared:]
    if passed:
        pairs = zip(passed, point[1][shared:], strict=True)
        by_shared = [*still[1][:shared], *(new.astype(old.dtype) for new, old in pairs)]
        later = jax.jvp(outputs, point, (still[0], by_shared, *still[2:]))[1]
        floats = [*floats, later[0], *map(jnp.ravel, jax.tree.leaves(later[1:]))]
    rest = [jnp.ravel(leaf) for leaf in (*jax.tree.leaves(step.around.put(updates, 0.0)), *floats)]
    count = len(jax.tree.leaves(updates))
    for k, entries in enumerate(step.entries):
        rest[count + k] = rest[count + k].at[entries].set(0)
    real = [r.astype(jnp.float64) for r in rest if jnp.issubdtype(r.dtype, jnp.floating)]
    # 0·inf of others at a second moment of zero says nothing.
    sizes = [jnp.max(jnp.abs(jnp.nan_to_num(r, posinf=0.0)), initial=0.0) for r in real]
    return inwards, jnp.max(jnp.stack(sizes))


@compiled
def _update_at(step: StepMap, z: Array) -> Array:
    return step(z[:-2], z[-2], z[-1])[1]


def _no_tangent(leaf: Array) -> Array | np.ndarray:
    if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
        return jnp.zeros_like(leaf)
    return np.zeros(np.shape(leaf), jax.dtypes.float0)


def _some_tangent(leaf: Array | np.ndarray) -> np.ndarray:
    """A move upwards, another for each entry; of what cannot move, nothing."""
    if not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
        return np.zeros(0)
    rng = np.random.default_rng(3)
    return rng.uniform(0.5, 1.5, np.shape(leaf)).astype(jnp.result_type(leaf))


def _require_no_turning(step: StepMap, z: Inputs) -> None:
    """Raise `UserError` where others move a component that is at rest: no factor does that."""
    rng = np.random.default_rng(2)

    def moved(leaf: Array) -> Array:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        return leaf + jnp.asarray(rng.normal(size=np.shape(leaf))).astype(leaf.dtype)

    gradients, params = (
        jax.tree.map(moved, tree) for tree in (step.around.gradients, step.around.params)
    )
    if float(_update_at(step.among(params, gradients), np.zeros_like(z))) != 0.0:
        raise NotComponentwise(*TURNING)


def _in_words(step: StepMap, z: Inputs, held: Jacobian) -> str:
    """What the factor does, where gradients that are small enough do not meet it."""
    unknown = "a factor common to several components is held at its value"
    seen = []
    for size in (TINY, 2 * TINY):
        gradients = jax.tree.map(lambda g, s=size: s * g, step.around.gradients)
        small = step.among(step.around.params, gradients)
        at = np.array([*z[:-2], size * z[-2], z[-1]])
        try:
            seen.append(value_and_jacobian(small, at)[1])
        except UserError:
            return unknown
        if _coupled(small, at, seen[-1], kicks=(0.0,)):
            return unknown
    for row in range(len(held)):
        free, again, now = seen[0][row, -2], seen[1][row, -2], held[row, -2]
        if free != 0.0 and abs(again / free - 1.0) < 1e-6 and 0.0 < now / free < 1.0 - 1e-9:
            return f"all updates times {now / free:.3g} (a common factor, held)"
    return unknown


def _common_part(step: StepMap, z: Inputs, outputs: int) -> Jacobian:
    inputs, count = len(z), _components(step)
    # Own inputs, with nothing of anybody else.
    nobody, none = np.full(inputs, 2 * count), np.zeros(count)
    _, by_own = _moves(step, z, np.eye(inputs), nobody, none)
    of_others = np.delete(by_own, _positions(step, _own_position(step)), axis=0)
    if not step.layout.shared and not np.any(of_others):
        # As where the own gradient is zero: a norm of all then stays as it is.
        return np.zeros((outputs, inputs))
    affected = np.any(by_own[:count] != 0.0, axis=1)
    columns, rows, more = _samples(step, affected)
    # And moved together: all but this component and the rows, by which the effect is predicted.
    together = np.random.default_rng(5).uniform(0.5, 1.5, count)
    together[[_own_position(step), *rows]] = 0.0
    # Of each column the gradient, and the parameter: some factors are of parameters alone.
    which = np.concatenate([columns, count + columns, [2 * count]])
    m = len(which) - 1
    to_own, to_all = _moves(step, z, np.zeros((m + 1, inputs)), which, together)
    at, and_at = (
        np.concatenate([np.zeros(0, np.int64), *(_positions(step, int(c)) for c in sample)])
        for sample in (rows, more)
    )
    J_iK, J_Ji, J_JK = to_own[:outputs, :m], by_own[at], to_all[at, :m]
    if not J_JK.size:
        raise NotComponentwise(*TOO_COUPLED)
    inverse = np.linalg.pinv(J_JK, rcond=1e-9)
    pairs = (
        (to_all[and_at, :m] @ inverse @ J_Ji, by_own[and_at]),
        (J_iK @ inverse @ to_all[at, m], to_own[:outputs, m]),
    )
    if np.linalg.matrix_rank(J_JK, rtol=1e-9) > RANK or any(
        np.any(np.abs(predicted - seen) > PREDICTED * np.max(np.abs(seen), initial=0.0))
        for predicted, seen in pairs
    ):
        raise NotComponentwise(*TOO_COUPLED)
    return J_iK @ inverse @ J_Ji


def _moves(
    step: StepMap,
    z: Inputs,
    dz: Float[np.ndarray, "K inputs"],
    which: Int[np.ndarray, " K"],
    together: Float[np.ndarray, " components"],
) -> tuple[Float[np.ndarray, "outputs K"], Float[np.ndarray, "all K"]]:
    """`_tangents` of own outputs and of all; the last move is ``together`` too."""
    many = np.arange(len(dz)) == len(dz) - 1
    short = -len(dz) % MOVES
    dz, which = np.pad(dz, ((0, short), (0, 0))), np.pad(which, (0, short))
    many = np.pad(many.astype(float), (0, short))
    parts = [
        _tangents(step, z, dz[k : k + MOVES], which[k : k + MOVES], together, many[k:][:MOVES])
        for k in range(0, len(dz), MOVES)
    ]
    own, everyone = (np.concatenate([np.asarray(p[side]) for p in parts]) for side in (0, 1))
    kept = slice(len(dz) - short)
    # Others at a second moment of zero have no derivative.
    return own[kept].T, np.nan_to_num(everyone[kept].T, posinf=0.0, neginf=0.0)


@compiled
def _tangents(
    step: StepMap,
    z: Array,
    dz: Float[Array, "K inputs"],
    others: Int[Array, " K"],
    together: Float[Array, " components"],
    many: Float[Array, " K"],
) -> tuple[Array, Array]:
    """Tangents of own outputs and of all (`_positions`), along dz and what others have.

    That is one of the ``others``, counted through all gradients and then all parameters, and
    ``many`` times both of all that move ``together``.
    """
    flat, unravel = ravel_pytree((step.around.gradients, step.around.params))
    memory = _memory(step)
    own_memory = len(memory) - len(step.layout.shared)

    def one(direction: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        def moved(t: Array) -> tuple[Array, Array]:
            all_moved = flat + t * direction[2] * jnp.tile(together, 2)
            gradients, params = unravel(all_moved.at[direction[1]].add(t))
            at = z + t * direction[0]
            own, updates, floats = _whole_step(step, at, memory, gradients, params)
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
    slices: list[np.ndarray] = []
    if len(shape) > 1:
        at = np.unravel_index(leaf, shape)
        slices = [leaf[axis == axis[here]] for axis in at]
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
    starts = sum(sizes) + np.cumsum([0, *(np.size(leaves[i]) for i in step.memory)])
    found = [
        starts[step.memory.index(i)] + at for i, at in zip(layout.memory, entries, strict=True)
    ]
    return np.concatenate([[component], *found]).astype(np.int64)


def _own_position(step: StepMap) -> int:
    """The component, counted through the whole tree."""
    leaves = jax.tree.leaves(step.around.params)[: step.around.leaf]
    return sum(np.size(leaf) for leaf in leaves) + int(step.around.index)


def _components(step: StepMap) -> int:
    return sum(np.size(leaf) for leaf in jax.tree.leaves(step.around.params))


def _whole_step(
    step: StepMap, z: Array, memory: list[Array], gradients: PyTree, params: PyTree
) -> tuple[Array, PyTree, list[Array]]:
    """One step of the whole training: own outputs, all updates, the float leaves of the state.

    ``memory`` replaces those float leaves (see `_floats`); z is the component's own.
    """
    places = _floats(step)
    state = with_leaves(step.state, dict(zip(places, memory, strict=True)))
    here = dataclasses.replace(step, state=state)
    around, n = step.around, len(z) - 2
    updates, after = step.update_all(
        around.put(gradients, z[n]), here.state_with(z[:n]), around.put(params, z[n + 1])
    )
    floats = [jax.tree.leaves(after)[i] for i in places]
    return jnp.append(step.vector(after), around.of(updates)), updates, floats


def _floats(step: StepMap) -> tuple[int, ...]:
    """Positions of float leaves of the state: the components' memory, then what they share."""
    return (*step.memory, *step.layout.shared)


def _memory(step: StepMap) -> list[Array]:
    parts = jax.tree.leaves(step.state)
    return [jnp.asarray(parts[i]) for i in _floats(step)]
