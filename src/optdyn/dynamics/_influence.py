"""What the other components of a training do to one, and it to them, at an operating point."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from optdyn.dynamics._jacobians import value_and_jacobian
from optdyn.dynamics._remembered import Remembered
from optdyn.dynamics._state_layout import state_layout
from optdyn.errors import UserError
from optdyn.precision import double_precision
from optdyn.random_streams import stream

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int, PyTree

    from optdyn.dynamics._step_map import StepMap

# What treats each component by itself has no influence at all, not even by rounding.
NOTHING = 1e-14
# The whole training is moved by a vector of this length, to see more than the point itself.
KICK = 1e-3
# So many components are sampled on each side of a common factor; of this rank it may be.
SAMPLED, RANK = 6, 3
PREDICTED = 1e-6
# Gradients times this meet no clip.
TINY = 1e-6


class _Programs(NamedTuple):
    influence: Callable[..., tuple[Array, Array]]
    tangents: Callable[..., tuple[Array, Array]]
    updates: Callable[..., Array]


PROGRAMS: Remembered[_Programs] = Remembered()


@dataclasses.dataclass(frozen=True)
class Held:
    """A Jacobian with the common factor held at its value, and that in words ("" for none)."""

    jacobian: Float[np.ndarray, "outputs inputs"]
    words: str


def hold_common_factor(
    step: StepMap, z: Float[np.ndarray, " inputs"], jacobian: Float[np.ndarray, "outputs inputs"]
) -> Held:
    """Take out of ``jacobian`` at z = [h, g, x] what acts by way of a factor common to others.

    Of outputs i and inputs j of different components the Jacobian is then a product of few
    columns and rows; with those of sampled components, J_ii − J_iK J_JK⁻¹ J_Ji is the
    derivative at a fixed factor. Clipping by a norm below its threshold takes nothing.

    Raises `UserError` where components turn each other's updates (Muon, centred gradients), or
    are coupled by more than a few numbers.
    """
    if _components(step) == 1:
        return Held(jacobian, "")
    programs = PROGRAMS.recall((step.kind, len(z)), _compiled)
    with double_precision():
        if not _coupled(programs, step, z, jacobian):
            return Held(jacobian, "")
        _require_no_turning(programs, step, z)
        if step.alone:
            raise UserError(
                "operating point: one factor common to all components acts here, as in clipping "
                f"by norm and in trust ratios (allowed: gradients of up to {step.silent_up_to:g}; "
                "or params=, state=, gradient= and leaf= of a training, where it has a value)"
            )
        held = jacobian - _common_part(programs, step, z, len(jacobian))
    return Held(held, _in_words(step, z, held))


def _components(step: StepMap) -> int:
    return sum(np.size(leaf) for leaf in jax.tree.leaves(step.around.params))


def _coupled(programs: _Programs, step: StepMap, z: np.ndarray, jacobian: np.ndarray) -> bool:
    size = np.max(np.abs(jacobian), initial=0.0)
    for kick in (0.0, KICK):
        moved, at = _kicked(step, z, kick)
        inwards, outwards = (np.asarray(part) for part in programs.influence(moved, at))
        # A NaN of the component's own at the point itself would have been refused before.
        if np.any(np.abs(inwards) > NOTHING * size) or outwards > NOTHING * size:
            return True
        if kick == 0.0 and np.any(np.isnan(inwards)):
            return True
    return False


def _kicked(step: StepMap, z: np.ndarray, kick: float) -> tuple[StepMap, np.ndarray]:
    """The whole training moved by about ``kick``, everything upwards (second moments too)."""
    rng = np.random.default_rng(1)
    each = kick / np.sqrt(_components(step))

    def moved(leaf: Array) -> Array:
        if kick == 0.0 or not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        return leaf + jnp.asarray(each * rng.uniform(0.5, 1.5, np.shape(leaf))).astype(leaf.dtype)

    parts, treedef = jax.tree.flatten(step.state)
    for i in (*step.layout.memory, *step.layout.others):
        parts[i] = moved(jnp.asarray(parts[i]))
    around = dataclasses.replace(
        step.around,
        params=jax.tree.map(moved, step.around.params),
        gradients=jax.tree.map(moved, step.around.gradients),
    )
    at = z + each * rng.uniform(0.5, 1.5, len(z)) if kick else z
    return dataclasses.replace(step, state=jax.tree.unflatten(treedef, parts), around=around), at


def _compiled() -> _Programs:
    return _Programs(jax.jit(_influence), jax.jit(_tangents), jax.jit(_update_at))


def _whole(
    step: StepMap, z: Array, memory: list[Array], gradients: PyTree, params: PyTree
) -> tuple[Array, PyTree, list[Array]]:
    """One step of the whole training: own outputs, all updates, the float leaves of the state.

    ``memory`` replaces the float leaves that belong to components; z is the component's own.
    """
    places = (*step.layout.memory, *step.layout.others)
    parts, treedef = jax.tree.flatten(step.state)
    for i, value in zip(places, memory, strict=True):
        parts[i] = value
    here = dataclasses.replace(step, state=jax.tree.unflatten(treedef, parts))
    around, n = step.around, len(z) - 2
    updates, after = step.update_all(
        here.state_with(z[:n]), around.put(gradients, z[n]), around.put(params, z[n + 1])
    )
    floats = [jax.tree.leaves(after)[i] for i in (*places, *step.layout.shared)]
    return jnp.append(step.vector(after), around.of(updates)), updates, floats


def _memory(step: StepMap) -> list[Array]:
    parts = jax.tree.leaves(step.state)
    return [jnp.asarray(parts[i]) for i in (*step.layout.memory, *step.layout.others)]


def _influence(step: StepMap, z: Array) -> tuple[Array, Array]:
    """What a move of all others does to own outputs [N+1], and the most an own one does to them."""
    point = (z, _memory(step), step.around.gradients, step.around.params)
    still, moving = (jax.tree.map(tangent, point) for tangent in (_no_tangent, _some_tangent))

    def outputs(*point: Any) -> tuple[Array, PyTree, list[Array]]:
        return _whole(step, *point)

    inwards = jax.jvp(outputs, point, (still[0], *moving[1:]))[1][0]
    _, updates, floats = jax.jvp(outputs, point, (moving[0], *still[1:]))[1]
    rest = [jnp.ravel(leaf) for leaf in (*jax.tree.leaves(step.around.put(updates, 0.0)), *floats)]
    count = len(rest) - len(floats)
    for k, entries in enumerate(step.entries):
        rest[count + k] = rest[count + k].at[entries].set(0)
    real = [r.astype(jnp.float64) for r in rest if jnp.issubdtype(r.dtype, jnp.floating)]
    # 0·inf of others at a second moment of zero says nothing.
    sizes = [jnp.max(jnp.abs(jnp.nan_to_num(r, posinf=0.0)), initial=0.0) for r in real]
    return inwards, jnp.max(jnp.stack(sizes))


def _tangents(
    step: StepMap, z: Array, dz: Float[Array, "K inputs"], others: Int[Array, " K"]
) -> tuple[Array, Array]:
    """Tangents of own outputs and of all (`_positions`), along dz and other gradients."""
    flat, unravel = ravel_pytree(step.around.gradients)
    memory = _memory(step)

    def one(direction: tuple[Array, Array]) -> tuple[Array, Array]:
        def moved(t: Array) -> tuple[Array, Array]:
            gradients = unravel(flat.at[direction[1]].add(t))
            at = z + t * direction[0]
            own, updates, floats = _whole(step, at, memory, gradients, step.around.params)
            outputs = [ravel_pytree(updates)[0], *map(jnp.ravel, floats[: len(memory)])]
            return own, jnp.concatenate([part.astype(jnp.float64) for part in outputs])

        tangents: tuple[Array, Array] = jax.jvp(moved, (jnp.float64(0.0),), (jnp.float64(1.0),))[1]
        return tangents

    return jax.lax.map(one, (dz, others))


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


def _update_at(step: StepMap, z: Array) -> Array:
    return step(z[:-2], z[-2], z[-1])[1]


def _no_tangent(leaf: Array) -> Array | np.ndarray:
    if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
        return jnp.zeros_like(leaf)
    return np.zeros(np.shape(leaf), jax.dtypes.float0)


def _some_tangent(leaf: Array) -> Array | np.ndarray:
    if not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
        return np.zeros(np.shape(leaf), jax.dtypes.float0)
    key = stream(0, "sizes of gradients that show influence")
    drawn = jax.random.uniform(key, jnp.shape(leaf), jnp.float64, 0.5, 1.5)
    return drawn.astype(leaf.dtype)


def _require_no_turning(programs: _Programs, step: StepMap, z: np.ndarray) -> None:
    """Raise `UserError` where others move a component that is at rest: no factor does that."""
    rng = np.random.default_rng(2)
    gradients = jax.tree.map(
        lambda g: g + jnp.asarray(rng.normal(size=np.shape(g))).astype(g.dtype),
        step.around.gradients,
    )
    moved = dataclasses.replace(step, around=dataclasses.replace(step.around, gradients=gradients))
    update = float(programs.updates(moved, np.zeros_like(z)))
    if update != 0.0:
        raise UserError(
            "optimizer: not component-wise here: others turn this component's update, as Muon, "
            "Shampoo and centred gradients do (allowed: leaves that are treated component by "
            "component; for any optimizer: optdyn.closed_loop)"
        )


def _common_part(
    programs: _Programs, step: StepMap, z: np.ndarray, outputs: int
) -> Float[np.ndarray, "outputs inputs"]:
    own = sum(np.size(leaf) for leaf in jax.tree.leaves(step.around.params)[: step.around.leaf])
    others = np.delete(np.arange(_components(step)), own + int(step.around.index))
    others = np.random.default_rng(3).permutation(others)
    m = min(SAMPLED, len(others) // 3)
    columns, rows, more = others[:m], others[m : 2 * m], others[2 * m : 3 * m]
    inputs = len(z)
    # Own inputs first (with the gradient of nobody else), then the gradients of the columns.
    nobody = _components(step)
    dz = np.concatenate([np.eye(inputs), np.zeros((m, inputs))])
    which = np.concatenate([np.full(inputs, nobody), columns])
    to_own, to_all = (np.asarray(part).T for part in programs.tangents(step, z, dz, which))
    # Others at a second moment of zero have no derivative.
    to_all = np.nan_to_num(to_all, posinf=0.0, neginf=0.0)
    at, and_at = (
        np.concatenate([np.zeros(0, np.int64), *(_positions(step, int(c)) for c in sample)])
        for sample in (rows, more)
    )
    J_iK, J_Ki, J_KK = to_own[:outputs, inputs:], to_all[at, :inputs], to_all[at, inputs:]
    inverse = np.linalg.pinv(J_KK, rcond=1e-9) if m else np.zeros((0, 0))
    rank = np.linalg.matrix_rank(J_KK, rtol=1e-9) if m else 0
    predicted = to_all[and_at, inputs:] @ inverse @ J_Ki if m else np.zeros((0, inputs))
    seen = to_all[and_at, :inputs]
    if (
        not m
        or rank > RANK
        or np.any(np.abs(predicted - seen) > PREDICTED * np.max(np.abs(seen), initial=0.0))
    ):
        raise UserError(
            "optimizer: not component-wise here: the components are coupled by more than a few "
            "common factors (allowed: clipping by norm, trust ratios; for any optimizer: "
            "optdyn.closed_loop)"
        )
    return J_iK @ inverse @ J_Ki


def _in_words(step: StepMap, z: np.ndarray, held: np.ndarray) -> str:
    """What the factor is: what it does to gradients, against gradients too small to be clipped."""
    seen = []
    for size in (TINY, 2 * TINY):
        gradients = jax.tree.map(lambda g, s=size: s * g, step.around.gradients)
        small = dataclasses.replace(
            step, around=dataclasses.replace(step.around, gradients=gradients)
        )
        try:
            seen.append(value_and_jacobian(small, np.array([*z[:-2], size * z[-2], z[-1]]))[1])
        except UserError:
            return "a factor common to all components is held at its value"
    for row in range(len(held)):
        free, again, now = seen[0][row, -2], seen[1][row, -2], held[row, -2]
        if free != 0.0 and abs(again / free - 1.0) < 1e-6 and 0.0 < now / free < 1.0 - 1e-9:
            return f"clipped: all updates times {now / free:.3g} (a common factor, held)"
    return "a factor common to all components is held at its value"
