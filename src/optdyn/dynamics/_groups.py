"""Leaves of a real tree of parameters that an optimizer treats alike."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from optdyn.dynamics._dissection import Dissection, dissect
from optdyn.dynamics._place import Place, leaf_names
from optdyn.dynamics._remembered import Remembered
from optdyn.dynamics._separability import keep_precision
from optdyn.dynamics._step_map import Optimizer, StepMap, step_map
from optdyn.errors import UserError, finite_number, require_number
from optdyn.in_words import InWords
from optdyn.precision import double_precision

if TYPE_CHECKING:
    from jaxtyping import Array, Complex, Float, PyTree

STEPS = 24
ALIKE = 1e-9
SHOWN = 3


@dataclasses.dataclass(frozen=True)
class Group:
    """Leaves that behave alike, and what one component of them does.

    ``leaves``: their names; ``found``: the dissection of one component of the first. ``uniform``:
    whether all components within each leaf behave alike too.
    """

    leaves: tuple[str, ...]
    components: int
    uniform: bool
    found: Dissection

    @property
    def modes(self) -> tuple[Complex[np.ndarray, " N"], Complex[np.ndarray, " N"]]:
        """``(alpha, beta)``: learning rates and momenta of the modes."""
        return self.found.modes.alpha, self.found.modes.beta

    @property
    def rate(self) -> float:
        """The update a step that a unit gradient leads to in all."""
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
class ParamGroups(InWords):
    """The groups, the largest first."""

    groups: tuple[Group, ...]

    def verdict(self) -> list[str]:
        """One row a group."""
        return [line for group in self.groups for line in _row(group)]

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

    Found by response, not by name: every component of every leaf gets the same gradients, from
    the initial state and the same value, and leaves with equal updates are one group. One
    component of each group is then dissected (see `dissect`): with ``state``, ``gradient`` and
    ``count`` of a training where they are given, else under gradients of ``gradient_scale``.

    Raises `UserError` for what `dissect` refuses, with the leaf, and for parameters without
    leaves of floating-point numbers.
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
    step = step_map(tx, params=params, leaf=names[real[0]])
    size = gradient_scale / np.sqrt(sum(np.prod(shape) for shape in shapes))
    first, spread = _answers(step, size)
    members: list[list[int]] = []
    for i in real:
        for group in members:
            scale = np.max(np.abs(first[[i, group[0]]]))
            if np.max(np.abs(first[i] - first[group[0]])) <= ALIKE * scale:
                group.append(i)
                break
        else:
            members.append([i])
    groups = []
    for group in members:
        try:
            place = Place(
                params=params,
                leaf=names[group[0]],
                state=state,
                gradient=gradient,
                count=count,
            )
            found = dissect(tx, gradient_scale=gradient_scale, **place)
        except UserError as error:
            raise UserError(f"{names[group[0]]}: {error}") from error
        uniform = bool(np.all(spread[group] <= ALIKE * np.max(np.abs(first[group]))))
        components = int(sum(np.prod(shapes[i]) for i in group))
        groups.append(Group(tuple(names[i] for i in group), components, uniform, found))
    return ParamGroups(tuple(sorted(groups, key=lambda group: -group.components)))


PROGRAMS: Remembered[Callable[..., tuple[Array, Array]]] = Remembered()


def _answers(
    step: StepMap, size: float
) -> tuple[Float[np.ndarray, "leaves steps"], Float[np.ndarray, " leaves"]]:
    """The updates of each leaf's first component, and how far others in the leaf are off."""
    with double_precision():
        gradients = size * np.cos(0.37 * np.arange(STEPS * step.clock.period) ** 2)
        run = PROGRAMS.recall(step.kind, _compiled)
        first, spread = run(step, jnp.asarray(gradients))
        return np.asarray(first).T, np.max(np.asarray(spread), axis=0)


def _compiled() -> Callable[..., tuple[Array, Array]]:
    def run(step: StepMap, gradients: Float[Array, " steps"]) -> tuple[Array, Array]:
        ones = jax.tree.map(jnp.ones_like, step.around.params)
        start = jax.tree.map(jnp.asarray, step.tx.init(ones))

        def advance(state: PyTree, g: Float[Array, ""]) -> tuple[PyTree, tuple[Array, Array]]:
            same = jax.tree.map(lambda p: jnp.full_like(p, g.astype(p.dtype)), ones)
            updates, after = step.update_all(state, same, ones)
            flat = [jnp.ravel(u).astype(jnp.float64) for u in jax.tree.leaves(updates)]
            first = jnp.stack([u[0] if u.size else jnp.float64(0.0) for u in flat])
            off = [jnp.max(jnp.abs(u - u[:1]), initial=0.0) for u in flat]
            return keep_precision(after, state), (first, jnp.stack(off))

        answers: tuple[Array, Array] = jax.lax.scan(advance, start, gradients)[1]
        return answers

    return jax.jit(run)


def _row(group: Group) -> list[str]:
    leaves = ", ".join(group.leaves[:SHOWN])
    more = len(group.leaves) - SHOWN
    leaves += f" and {more} more" if more > 0 else ""
    decay = f", decay {group.decay:.4g} a step" if group.decay else ""
    lines = [f"{leaves}: {group.found.identification.name}, rate {group.rate:.4g}{decay}"]
    modes = [line for line in group.found.modes.verdict() if line.startswith(("modes", "stable"))]
    lines += [f"  {line}" for line in modes]
    if group.schedule:
        lines.append(f"  {group.schedule}")
    if not group.uniform:
        lines.append("  components within a leaf differ: this is the first one")
    return lines
