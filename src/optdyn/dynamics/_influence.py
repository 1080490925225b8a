"""What the other components of a training do to one, and it to them, at an operating point."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from optdyn.dynamics._common_factor import common_part, components, memory_of, tangents, whole_step
from optdyn.dynamics._jacobians import value_and_jacobian
from optdyn.dynamics._remembered import Remembered
from optdyn.errors import UserError
from optdyn.precision import double_precision
from optdyn.random_streams import stream

if TYPE_CHECKING:
    from jaxtyping import Array, Float, PyTree

    from optdyn.dynamics._step_map import StepMap

# What treats each component by itself has no influence at all, not even by rounding.
NOTHING = 1e-14
# The whole training is moved by a vector of this length, to see more than the point itself.
KICK = 1e-3
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
    derivative at a fixed factor. Clipping by a norm below its threshold takes nothing. Samples
    are of what the component acts on: in each slice of its leaf that it is in, in the leaf, and
    in one other leaf. A factor may belong to one of these.

    Raises `UserError` where components turn each other's updates (Muon, centred gradients), or
    are coupled by more than a few numbers.
    """
    if components(step) == 1:
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
        held = jacobian - common_part(programs.tangents, step, z, len(jacobian))
        return Held(held, _in_words(programs, step, z, held))


def _coupled(
    programs: _Programs,
    step: StepMap,
    z: np.ndarray,
    jacobian: np.ndarray,
    kicks: tuple[float, ...] = (0.0, KICK),
) -> bool:
    size = np.max(np.abs(jacobian), initial=0.0)
    for kick in kicks:
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
    each = kick / np.sqrt(components(step))

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
    return _Programs(jax.jit(_influence), jax.jit(tangents), jax.jit(_update_at))


def _influence(step: StepMap, z: Array) -> tuple[Array, Array]:
    """What a move of all others does to own outputs [N+1], and the most an own one does to them.

    What all share counts where it then acts: a norm that is only written down does not.
    """
    point = (z, memory_of(step), step.around.gradients, step.around.params)
    still, moving = (jax.tree.map(tangent, point) for tangent in (_no_tangent, _some_tangent))
    shared = len(point[1]) - len(step.layout.shared)
    moving_memory = [*moving[1][:shared], *still[1][shared:]]

    def outputs(*point: Any) -> tuple[Array, PyTree, list[Array]]:
        return whole_step(step, *point)

    inwards = jax.jvp(outputs, point, (still[0], moving_memory, *moving[2:]))[1][0]
    _, updates, floats = jax.jvp(outputs, point, (moving[0], *still[1:]))[1]
    floats, passed = floats[:shared], floats[shared:]
    if passed:
        by_shared = [*still[1][:shared], *map(_like, passed, point[1][shared:])]
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


def _like(tangent: Array, leaf: Array) -> Array:
    return tangent.astype(leaf.dtype)


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


def _in_words(programs: _Programs, step: StepMap, z: np.ndarray, held: np.ndarray) -> str:
    """What the factor does, where gradients that are small enough do not meet it."""
    unknown = "a factor common to several components is held at its value"
    seen = []
    for size in (TINY, 2 * TINY):
        gradients = jax.tree.map(lambda g, s=size: s * g, step.around.gradients)
        small = dataclasses.replace(
            step, around=dataclasses.replace(step.around, gradients=gradients)
        )
        at = np.array([*z[:-2], size * z[-2], z[-1]])
        try:
            seen.append(value_and_jacobian(small, at)[1])
        except UserError:
            return unknown
        if _coupled(programs, small, at, seen[-1], kicks=(0.0,)):
            return unknown
    for row in range(len(held)):
        free, again, now = seen[0][row, -2], seen[1][row, -2], held[row, -2]
        if free != 0.0 and abs(again / free - 1.0) < 1e-6 and 0.0 < now / free < 1.0 - 1e-9:
            return f"all updates times {now / free:.3g} (a common factor, held)"
    return unknown
