"""Leaves of a real tree of parameters that an optimizer treats alike."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float, Int, PyTree

from optdyn.dynamics._dissection import Dissection, dissect
from optdyn.dynamics._jacobians import copies_at_once
from optdyn.dynamics._place import leaf_names, with_leaves
from optdyn.dynamics._remembered import compiled
from optdyn.dynamics._schedules import sampled_counts
from optdyn.dynamics._separability import NotComponentwise, keep_precision
from optdyn.dynamics._step_map import Optimizer, StepMap, step_map
from optdyn.errors import UserError, finite_number, require_number
from optdyn.in_words import InWords

STEPS = 12
# Gradients of these sizes tell thresholds apart.
DECADES = 10.0 ** np.arange(-3.0, 4.0)
ALIKE = 1e-9
SHOWN = 3
CHUNK = 128


@dataclasses.dataclass(frozen=True)
class Group:
    """Leaves that behave alike, and what one component of them does.

    ``leaves``: their names; ``found``: the dissection of one component of the first. ``uniform``:
    whether all components within each leaf behave alike too. ``coupled``: whether the gradients
    of others change what one does, at gradients of about ``gradient_scale`` in norm.
    """

    leaves: tuple[str, ...]
    components: int
    uniform: bool
    found: Dissection
    coupled: bool = False

    @property
    def modes(self) -> tuple[Complex[np.ndarray, " N"], Complex[np.ndarray, " N"]]:
        """``(alpha, beta)``: learning rates and momenta of the modes."""
        return self.found.modes.alpha, self.found.modes.beta

    @property
    def rate(self) -> float:
        """The update a step that a unit gradient leads to in all; 0 where none changes any."""
        return self.found.rate

    @property
    def decay(self) -> float:
        """The part of the parameter that is taken off a step."""
        lin = self.found.linearization
        return -lin.weight_decay / lin.period

    @property
    def schedule(self) -> str:
        """How the rate follows the step count, in words; "" where it does not."""
        return self.found.schedule_in_words


@dataclasses.dataclass(frozen=True)
class CoupledLeaves:
    """Leaves in which no component can be looked at alone; ``reason`` says why."""

    leaves: tuple[str, ...]
    components: int
    reason: str


@dataclasses.dataclass(frozen=True)
class ParamGroups(InWords):
    """The groups, the largest first; and the leaves that are in none, if there are any."""

    groups: tuple[Group, ...]
    coupled: tuple[CoupledLeaves, ...] = ()

    def verdict(self) -> list[str]:
        """One row a group, and one for all leaves that are coupled in the same way."""
        rows = [line for group in self.groups for line in _row(group)]
        return rows + [
            f"{_listed(one.leaves)}: {one.reason}: see optdyn.closed_loop" for one in self.coupled
        ]

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: int) -> Group:
        return self.groups[index]


def param_groups(
    tx: Optimizer,
    params: PyTree,
    *,
    gradient_scale: float = 1.0,
    state: PyTree | None = None,
    gradient: PyTree | None = None,
    count: int | None = None,
) -> ParamGroups:
    """Which leaves of ``params`` the optimizer ``tx`` treats alike, and how.

    Found by response, not by name. Leaves with equal updates of one component are one group.
    Every component of every leaf gets the same gradients, of sizes over six decades about
    ``gradient_scale``, and the same value, 1. The state is ``state`` (by default the initial
    one), with the memory that components start with and, in a second comparison, counters at
    all counts of `sampled_counts`. A leaf in which components are coupled, beside all that the
    whole tree shares, is not alike one in which they are not. One component of each group, the
    first that has a memory in ``state``, is then dissected (see `dissect`): with ``state``,
    ``gradient`` and ``count`` of a training where they are given, else under gradients of
    ``gradient_scale``. Leaves in which components turn one another's updates, as in Muon, are in
    no group: they are ``coupled``.

    Raises `UserError` for what `dissect` refuses, with the leaf, where all leaves are coupled so,
    and for parameters without leaves of floating-point numbers.
    """
    gradient_scale = finite_number("gradient_scale", gradient_scale)
    require_number("gradient_scale", gradient_scale)
    names, shapes = leaf_names(params), [np.shape(leaf) for leaf in jax.tree.leaves(params)]
    real = [
        i
        for i, leaf in enumerate(jax.tree.leaves(params))
        if jnp.issubdtype(jnp.result_type(leaf), jnp.floating) and np.size(leaf)
    ]
    if not real:
        raise UserError("params: no leaf of floating-point numbers (allowed: at least one)")
    step = step_map(tx, params=params, leaf=names[real[0]], state=state, count=count)
    answers = _answers(step, gradient_scale, sum(math.prod(shape) for shape in shapes))
    groups, refusals = list[Group](), list[str]()
    coupled: dict[str, list[int]] = {}
    for group in _alike(answers, real, [math.prod(shape) for shape in shapes]):
        try:
            found = dissect(
                tx,
                gradient_scale=gradient_scale,
                params=params,
                leaf=names[group[0]],
                index=_first_with_memory(params, group[0], state),
                state=state,
                gradient=gradient,
                count=count,
            )
        except NotComponentwise as error:
            coupled.setdefault(error.reason, []).extend(group)
            refusals.append(f"{names[group[0]]}: {error}")
            continue
        except UserError as error:
            raise UserError(f"{names[group[0]]}: {error}") from error
        groups.append(
            Group(
                leaves=tuple(names[i] for i in group),
                components=sum(math.prod(shapes[i]) for i in group),
                uniform=bool(np.all(answers.uniform[group])),
                found=found,
                coupled=bool(np.any(answers.coupled[group])),
            )
        )
    if not groups:
        raise UserError(refusals[0])
    return ParamGroups(
        groups=tuple(sorted(groups, key=lambda group: -group.components)),
        coupled=tuple(
            CoupledLeaves(
                leaves=tuple(names[i] for i in sorted(leaves)),
                components=sum(math.prod(shapes[i]) for i in leaves),
                reason=reason,
            )
            for reason, leaves in coupled.items()
        ),
    )


def _alike(answers: _Answers, leaves: list[int], sizes: list[int]) -> list[list[int]]:
    """``leaves`` in groups of those that behave alike; ``sizes``: of all leaves."""
    members: list[list[int]] = []
    for i in leaves:
        for group in members:
            # One component alone has no others that it could be coupled to.
            apart = 1 not in (sizes[i], sizes[group[0]])
            differ = apart and answers.coupled[i] != answers.coupled[group[0]]
            if not differ and answers.alike(i, group[0]):
                group.append(i)
                break
        else:
            members.append([i])
    return members


def _first_with_memory(params: PyTree, position: int, state: PyTree) -> tuple[int, ...] | None:
    """The first component of a leaf that is no dead input: its memory is not zero."""
    path, leaf = jax.tree_util.tree_leaves_with_path(params)[position]
    own = [
        np.asarray(memory) != 0
        for place, memory in jax.tree_util.tree_leaves_with_path(state)
        if np.shape(memory) == np.shape(leaf)
        and jax.tree_util.keystr(place).endswith(jax.tree_util.keystr(path))
    ]
    live = np.argwhere(np.logical_and.reduce(own)) if own else np.zeros((0, 0), int)
    return tuple(map(int, live[0])) if len(live) else None


@dataclasses.dataclass(frozen=True)
class _Answers:
    """``updates`` [leaves, probes, steps] of each leaf's first component, to compare.

    ``uniform``, ``coupled`` [leaves]: whether others of the leaf do the same, and whether the
    gradients of others matter.
    """

    updates: list[Float[np.ndarray, "leaves probes steps"]]
    uniform: np.ndarray
    coupled: np.ndarray

    def alike(self, i: int, j: int) -> bool:
        """Whether the first components of two leaves do the same in every probe."""
        return all(bool(np.all(_same(part[i], part[j]))) for part in self.updates)


def _same(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Over the last axis."""
    size = np.maximum(np.max(np.abs(a), axis=-1), np.max(np.abs(b), axis=-1))
    return np.max(np.abs(a - b), axis=-1) <= ALIKE * size


def _answers(step: StepMap, gradient_scale: float, components: int) -> _Answers:
    # So small that a clip by the norm of all is silent, and one gradient for all; then others too.
    small = gradient_scale / np.sqrt(components)
    sizes = np.array([small, small, *(gradient_scale * DECADES)])
    varied = (np.arange(len(sizes)) == 1).astype(float)
    period = step.clock.period
    shape = np.cos(0.37 * np.arange(STEPS * period) ** 2)
    probes = _probes(step, np.outer(sizes, shape), varied)
    first, spread = (np.moveaxis(np.asarray(part), 2, 0) for part in probes)
    updates = [np.delete(first, 1, axis=1)]
    if step.clock.counters and not step.clock.countdowns:
        curves = _at_counts(step, np.full(period, small), sampled_counts(step))
        updates.append(np.moveaxis(np.asarray(curves), 2, 0).reshape(len(first), 1, -1))
    largest = np.max(np.abs(first[:, 0]), axis=-1)
    return _Answers(
        updates=[np.nan_to_num(part, posinf=np.inf) for part in updates],
        uniform=np.max(spread[:, 0], axis=-1) <= ALIKE * largest,
        coupled=~_same(first[:, 0], first[:, 1]),
    )


@compiled
def _probes(
    step: StepMap, gradients: Float[Array, "probes steps"], varied: Float[Array, " probes"]
) -> tuple[Array, Array]:
    state = _start(step)
    found: tuple[Array, Array] = jax.lax.map(
        lambda probe: _run(step, state, *probe), (gradients, varied)
    )
    return found


@compiled
def _at_counts(step: StepMap, gradients: Float[Array, " steps"], counts: Int[Array, " K"]) -> Array:
    state = _start(step)
    parts = jax.tree.leaves(state)

    def one(count: Array) -> Array:
        moved = {i: jnp.full_like(parts[i], count) for i in step.clock.counters}
        return _run(step, with_leaves(state, moved), gradients, 0.0)[0]

    return jax.lax.map(one, counts, batch_size=copies_at_once(step, CHUNK))


def _start(step: StepMap) -> PyTree:
    return jax.tree.map(jnp.asarray, step.fresh_state(_ones(step.around.params)))


def _ones(params: PyTree) -> PyTree:
    return jax.tree.map(jnp.ones_like, params)


def _run(
    step: StepMap,
    state: PyTree,
    gradients: Float[Array, " steps"],
    varied: Float[Array, ""] | float,
) -> tuple[Float[Array, "steps leaves"], Float[Array, "steps leaves"]]:
    """Updates of each leaf's first component, and how far others in the leaf are off.

    ``varied``: how far the gradients of others differ from the first one's.
    """
    ones = _ones(step.around.params)

    def advance(state: PyTree, g: Float[Array, ""]) -> tuple[PyTree, tuple[Array, Array]]:
        updates, after = step.update_all(jax.tree.map(lambda p: given(p, g), ones), state, ones)
        flat = [jnp.ravel(u).astype(jnp.float64) for u in jax.tree.leaves(updates)]
        first = jnp.stack([u[0] if u.size else jnp.float64(0.0) for u in flat])
        off = [jnp.max(jnp.abs(u - u[:1]), initial=0.0) for u in flat]
        return keep_precision(after, state), (first, jnp.stack(off))

    def given(p: Array, g: Float[Array, ""]) -> Array:
        factors = 1.0 + 0.5 * varied * jnp.sin(jnp.arange(p.size, dtype=jnp.float64))
        return (g * factors.reshape(p.shape)).astype(p.dtype)

    found: tuple[Array, Array] = jax.lax.scan(advance, state, gradients)[1]
    return found


def _listed(leaves: tuple[str, ...]) -> str:
    more = len(leaves) - SHOWN
    return ", ".join(leaves[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def _row(group: Group) -> list[str]:
    leaves = _listed(group.leaves)
    decay = f", decay {group.decay:.4g} a step" if group.decay else ""
    like = group.found.identification
    off = "" if like.exact else f"nearest to (residual {like.nearest.residual:.2g}) "
    if like.responses.still:
        moved = bool(decay or group.found.linearization.drift)
        what = "no gradient changes an update" if moved else "stands still (every update is zero)"
        return [f"{leaves}: {what}{decay}"]
    blind = "" if group.found.responds else " (no small change of the gradient changes an update)"
    lines = [f"{leaves}: {off}{like.name}, rate {group.rate:.4g}{blind}{decay}"]
    modes = [line for line in group.found.modes.verdict() if line.startswith(("modes", "stable"))]
    lines += [f"  {line}" for line in modes]
    if group.schedule:
        lines.append(f"  {group.schedule}")
    if group.found.linearization.held:
        of = f", in {group.leaves[0]}" if len(group.leaves) > 1 else ""
        lines.append(f"  {group.found.linearization.held}{of}")
    if group.found.decay_in_words:
        lines.append(f"  {group.found.decay_in_words}")
    if group.coupled:
        lines.append("  the gradients of others change what a component does: this is one alone")
    if not group.uniform:
        lines.append("  components within a leaf differ: this is the first one")
    return lines
