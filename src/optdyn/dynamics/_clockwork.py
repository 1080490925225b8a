"""What in an optimizer's state counts steps, comes in cycles, or seeds random numbers."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from optdyn.dynamics._place import leaf_names
from optdyn.dynamics._separability import keep_precision
from optdyn.errors import UserError
from optdyn.random_streams import stream

if TYPE_CHECKING:
    import optax
    from jaxtyping import Array, Float, PyTree

STEPS, FEWEST_STEPS = 2000, 128
"""So many steps are run; fewer, down to the second number, where the parameters are many."""
WORK = 2 * 10**7
LONGEST_CYCLE = 256
ENTRIES = 4
"""So many entries of each discrete leaf are looked at."""
RANDOM_STEPS = 12
"""At least so many steps are compared under other random keys: not every one may draw."""


@dataclasses.dataclass(frozen=True)
class Clockwork:
    """Positions in the flattened state of what moves on its own, whatever the gradients.

    ``discrete``: all leaves of integers and booleans. ``counters``: the integer ones that grow
    from step to step, and the float leaves that every step makes larger by 1. ``countdowns``:
    names of integers that fall. ``period``: after so many steps the discrete leaves do the same
    again. ``wide``: the update takes its 32-bit integers in 64 bits too, in which what is computed
    from them, schedules above all, is exact.
    """

    discrete: tuple[int, ...]
    counters: tuple[int, ...]
    countdowns: tuple[str, ...]
    period: int
    wide: bool


def clockwork(tx: optax.GradientTransformation, state: PyTree, params: PyTree) -> Clockwork:
    """Run the optimizer and see what its state does (inside `double_precision`).

    Raises `UserError` where a step draws random numbers, where integers depend on the
    gradients, and where steps differ without coming in cycles.
    """
    leaves = jax.tree.leaves(state)
    names = ["state" if name == "params" else name for name in leaf_names(state)]
    keys = [i for i, leaf in enumerate(leaves) if jnp.issubdtype(leaf.dtype, jax.dtypes.extended)]
    discrete = [i for i, leaf in enumerate(leaves) if leaf.size and _is_discrete(leaf)]
    stepped = _stepped_floats(tx, state, params)
    constant, drawn = _histories(tx, state, params, [*discrete, *stepped])
    clocks = [i for i in stepped if all(_counts_by_one(h[i]) for h in (constant, drawn))]
    keys += [i for i in discrete if _looks_like_a_key(leaves[i], drawn[i])]
    discrete = [i for i in discrete if i not in keys]
    counters, countdowns = list(clocks), []
    for i in discrete:
        if not np.array_equal(constant[i], drawn[i]):
            raise UserError(
                f"optimizer: its {names[i]} ({leaves[i].dtype}) depends on the gradients "
                "(allowed: memory in floating-point numbers)"
            )
        changes = np.diff(constant[i].astype(np.int64), axis=0)
        if leaves[i].dtype == np.bool_ or not np.any(changes):
            continue
        if np.all(changes >= 0):
            counters.append(i)
        elif not np.any(changes > 0):
            countdowns.append(names[i])
    period = _period([constant[i] for i in discrete], [names[i] for i in discrete])
    _refuse_randomness(tx, state, params, {i: names[i] for i in keys}, max(period, RANDOM_STEPS))
    counters = sorted(counters)
    wide = _takes_wide_integers(tx, state, params, discrete)
    return Clockwork(tuple(discrete), tuple(counters), tuple(countdowns), period, wide)


def widened(parts: list[Array], clock: Clockwork) -> list[Array]:
    """The leaves of a state with its integers in 64 bits, where the update takes those."""
    if not clock.wide:
        return parts
    return [
        part.astype(jnp.int64) if i in clock.discrete and part.dtype == jnp.int32 else part
        for i, part in enumerate(parts)
    ]


def _period(histories: list[np.ndarray], names: list[str]) -> int:
    if not histories:
        return 1
    changes = np.concatenate(
        [np.diff(h.astype(np.int64), axis=0).reshape(len(h) - 1, -1) for h in histories], axis=1
    )
    changes = changes[len(changes) // 2 :]  # what happens once, at first, is over
    for period in range(1, min(len(changes) // 2, LONGEST_CYCLE) + 1):
        if np.array_equal(changes[period:], changes[:-period]):
            return period
    for name, values in zip(names, histories, strict=True):
        falls = np.flatnonzero(np.any(np.diff(values.astype(np.int64), axis=0) < 0, axis=1))
        if len(falls) > (1 if values.dtype == bool else 0):
            raise UserError(
                f"optimizer: not the same at every step: its {name} starts anew after "
                f"{falls[0] + 1} steps, in no cycle of up to {LONGEST_CYCLE} steps (allowed: "
                "optimizers that act alike at each step or in such cycles)"
            )
    return 1


def _stepped_floats(tx: optax.GradientTransformation, state: PyTree, params: PyTree) -> list[int]:
    zeros = jax.tree.map(jnp.zeros_like, params)
    _, after = tx.update(zeros, state, params)
    pairs = zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True)
    return [
        i
        for i, (old, new) in enumerate(pairs)
        if jnp.issubdtype(old.dtype, jnp.floating) and old.size and bool(jnp.all(new - old == 1))
    ]


def _counts_by_one(values: Float[np.ndarray, "times entries"]) -> bool:
    return bool(np.all(values == values[:1] + np.arange(len(values))[:, None]))


def _looks_like_a_key(leaf: Array, values: np.ndarray) -> bool:
    if leaf.dtype != np.uint32 or leaf.shape[-1:] != (2,):
        return False
    changes = np.diff(values.astype(np.int64), axis=0)
    return bool(np.any(changes[1:] != changes[:-1]))


def _refuse_randomness(
    tx: optax.GradientTransformation,
    state: PyTree,
    params: PyTree,
    keys: dict[int, str],
    steps: int,
) -> None:
    """Raise `UserError` where another seed gives other steps."""
    # Of all sizes: one that a clip cuts off would hide what was drawn.
    drawn = jax.random.normal(stream(0, "randomness"), (steps,), jnp.float64)

    def advance(before: PyTree, gradient: Float[Array, ""]) -> tuple[PyTree, list[Array]]:
        gradients = jax.tree.map(lambda p: jnp.full_like(p, gradient.astype(p.dtype)), params)
        updates, after = tx.update(gradients, before, params)
        return keep_precision(after, before), jax.tree.leaves(updates)

    run = jax.jit(lambda start: jax.lax.scan(advance, start, drawn))
    for i, name in keys.items():
        parts, treedef = jax.tree.flatten(state)
        raw = not jnp.issubdtype(parts[i].dtype, jax.dtypes.extended)
        count = max(parts[i].size // (2 if raw else 1), 1)
        others = jax.random.split(stream(0, "other keys of a random step"), count)
        if raw:
            parts[i] = jax.random.key_data(others).reshape(parts[i].shape).astype(np.uint32)
        else:
            parts[i] = others.reshape(parts[i].shape)
        one, other = (run(start) for start in (state, jax.tree.unflatten(treedef, parts)))
        if any(
            not np.array_equal(np.asarray(a), np.asarray(b), equal_nan=True)
            for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
            if jnp.issubdtype(a.dtype, jnp.floating)
        ):
            raise UserError(
                f"optimizer: a step is random: it draws numbers from its {name} (allowed: "
                "optimizers without noise; leave the noise out of the chain)"
            )


def _histories(
    tx: optax.GradientTransformation, state: PyTree, params: PyTree, positions: list[int]
) -> tuple[dict[int, np.ndarray], dict[int, np.ndarray]]:
    """The first entries of leaves, at the start and after each step: [steps + 1, entries].

    First under a constant gradient, then under a random one.
    """
    if not positions:
        return {}, {}
    size = sum(np.size(leaf) for leaf in jax.tree.leaves(params))
    steps = int(np.clip(WORK // max(size, 1), FEWEST_STEPS, STEPS))

    def chosen(tree: PyTree) -> list[Array]:
        leaves = jax.tree.leaves(tree)
        return [jnp.ravel(leaves[i])[:ENTRIES] for i in positions]

    def advance(before: PyTree, gradient: Float[Array, ""]) -> tuple[PyTree, list[Array]]:
        gradients = jax.tree.map(lambda p: jnp.full_like(p, gradient.astype(p.dtype)), params)
        _, after = tx.update(gradients, before, params)
        after = keep_precision(after, before)
        return after, chosen(after)

    @jax.jit
    def run(gradients: Float[Array, " steps"]) -> list[Array]:
        return jax.lax.scan(advance, state, gradients)[1]

    def history(gradients: Float[Array, " steps"]) -> dict[int, np.ndarray]:
        pairs = zip(positions, chosen(state), run(gradients), strict=True)
        return {i: np.concatenate([np.asarray(a)[None], np.asarray(b)]) for i, a, b in pairs}

    drawn = jax.random.normal(stream(0, "state layout"), (steps,), jnp.float64)
    return history(jnp.ones(steps, jnp.float64)), history(drawn)


def _takes_wide_integers(
    tx: optax.GradientTransformation, state: PyTree, params: PyTree, discrete: list[int]
) -> bool:
    parts, treedef = jax.tree.flatten(state)
    narrow = [i for i in discrete if parts[i].dtype == jnp.int32]
    for i in narrow:
        parts[i] = parts[i].astype(jnp.int64)
    try:
        jax.eval_shape(tx.update, params, jax.tree.unflatten(treedef, parts), params)
    except Exception:  # the user's own code may raise anything
        return False
    return bool(narrow)


def _is_discrete(leaf: Any) -> bool:
    return bool(jnp.issubdtype(leaf.dtype, jnp.integer) or leaf.dtype == np.bool_)
