"""How steps depend on the step count: counters, cycles, schedules, random numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from optdyn.dynamics._place import leaf_names, with_leaves
from optdyn.dynamics._remembered import Remembered, compiled
from optdyn.dynamics._separability import keep_precision
from optdyn.errors import UserError
from optdyn.random_streams import stream

if TYPE_CHECKING:
    import optax
    from jaxtyping import Array, Float, PyTree

    from optdyn.dynamics._step_map import StepMap

STEPS, FEWEST_STEPS = 2000, 128
"""So many steps are run; fewer, down to the second number, where the parameters are many."""
WORK = 2 * 10**7
LONGEST_CYCLE = 256
ENTRIES = 4
"""So many entries of each discrete leaf are looked at."""
RANDOM_STEPS = 12
"""At least so many steps are compared under other random keys: not every one may draw."""
TIMED_STEPS, TIMED_CYCLES = 64, 4
"""The responses of at least so many successive steps, and cycles, are compared."""
# Differences below this part of a response are rounding.
ROUNDING = 1e-7
# A cycle repeats after p steps so much better than neighbouring steps agree.
REPEATS = 0.25
# A response that turns more often than at this part of the steps follows no schedule.
TURNS = 0.25


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


def widened(state: PyTree, clock: Clockwork) -> PyTree:
    """``state`` with its integers in 64 bits, where the update takes those."""
    if not clock.wide:
        return state
    parts = jax.tree.leaves(state)
    narrow = [i for i in clock.discrete if parts[i].dtype == jnp.int32]
    return with_leaves(state, {i: parts[i].astype(jnp.int64) for i in narrow})


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
    @jax.jit  # operation by operation, each would be compiled for every shape
    def stepped(state: PyTree, params: PyTree) -> list[Array | bool]:
        _, after = tx.update(jax.tree.map(jnp.zeros_like, params), state, params)
        pairs = zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True)
        return [
            jnp.all(new - old == 1)
            if jnp.issubdtype(old.dtype, jnp.floating) and old.size
            else False
            for old, new in pairs
        ]

    return [i for i, found in enumerate(stepped(state, params)) if found]


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

    @jax.jit
    def run(start: PyTree) -> Any:
        return under_gradients(tx.update, start, params, drawn, lambda updates, after: updates)

    for i, name in keys.items():
        own = jax.tree.leaves(state)[i]
        raw = not jnp.issubdtype(own.dtype, jax.dtypes.extended)
        count = max(own.size // (2 if raw else 1), 1)
        others = jax.random.split(stream(0, "other keys of a random step"), count)
        if raw:
            others = jax.random.key_data(others).astype(np.uint32)
        changed = with_leaves(state, {i: others.reshape(own.shape)})
        one, other = (jax.tree.leaves(run(start)) for start in (state, changed))
        if any(
            not np.array_equal(np.asarray(a), np.asarray(b), equal_nan=True)
            for a, b in zip(one, other, strict=True)
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

    @jax.jit
    def run(gradients: Float[Array, " steps"]) -> list[Array]:
        return under_gradients(tx.update, state, params, gradients, lambda _, after: chosen(after))[
            1
        ]

    def history(gradients: Float[Array, " steps"]) -> dict[int, np.ndarray]:
        pairs = zip(positions, chosen(state), run(gradients), strict=True)
        return {i: np.concatenate([np.asarray(a)[None], np.asarray(b)]) for i, a, b in pairs}

    drawn = jax.random.normal(stream(0, "state layout"), (steps,), jnp.float64)
    return history(jnp.ones(steps, jnp.float64)), history(drawn)


def under_gradients(
    update: Callable[..., tuple[PyTree, PyTree]],
    state: PyTree,
    params: PyTree,
    gradients: Float[Array, " steps"],
    record: Callable[[PyTree, PyTree], Any] = lambda updates, after: None,
) -> tuple[PyTree, Any]:
    """The last state, and ``record(updates, state)`` of each step, parameters held.

    At each step all components get one gradient.
    """

    def advance(before: PyTree, gradient: Float[Array, ""]) -> tuple[PyTree, Any]:
        every = jax.tree.map(lambda p: jnp.full_like(p, gradient.astype(p.dtype)), params)
        updates, after = update(every, before, params)
        after = keep_precision(after, before)
        return after, record(updates, after)

    last: tuple[PyTree, Any] = jax.lax.scan(advance, state, gradients)
    return last


def _takes_wide_integers(
    tx: optax.GradientTransformation, state: PyTree, params: PyTree, discrete: list[int]
) -> bool:
    leaves = jax.tree.leaves(state)
    wide = {i: leaves[i].astype(jnp.int64) for i in discrete if leaves[i].dtype == jnp.int32}
    try:
        jax.eval_shape(tx.update, params, with_leaves(state, wide), params)
    except Exception:  # the user's own code may raise anything
        return False
    return bool(wide)


def _is_discrete(leaf: Any) -> bool:
    return bool(jnp.issubdtype(leaf.dtype, jnp.integer) or leaf.dtype == np.bool_)


@dataclasses.dataclass(frozen=True)
class Timing:
    """``period``: the steps of a cycle, 1 for none. ``varies``: it also changes slowly."""

    period: int
    varies: bool


TIMINGS: Remembered[Timing] = Remembered()


def timing(step: StepMap) -> Timing:
    """Compare the response to one gradient, at one memory, at successive steps.

    Raises `UserError` where it changes irregularly from step to step.
    """
    moving = _moving(step)
    if not moving:
        return Timing(1, False)
    parts = jax.tree.leaves(step.state)
    values = tuple(np.asarray(parts[i]).ravel()[:4].tobytes() for i in moving)
    return TIMINGS.recall((step.kind, values), lambda: _timing(step))


def _moving(step: StepMap) -> tuple[int, ...]:
    """Positions of what may move by itself: numbers that all components share may, too."""
    return (*step.clock.discrete, *step.clock.counters, *step.layout.shared)


def _timing(step: StepMap) -> Timing:
    base, point = step.clock.period, np.random.default_rng(4).uniform(0.5, 1.5, len(step.names) + 2)
    series = np.asarray(_successive(step, point, steps=max(TIMED_STEPS, TIMED_CYCLES * base)))
    size = np.max(np.abs(np.where(np.isfinite(series), series, 0.0)), axis=0)
    series = np.nan_to_num(series / np.where(size > 0, size, 1.0), posinf=0.0, neginf=0.0)
    series = np.round(series / ROUNDING) * ROUNDING

    def variation(lag: int) -> float:
        return float(np.mean(np.abs(series[lag:] - series[:-lag]))) if lag < len(series) else 0.0

    lag_one = variation(base)
    if lag_one <= ROUNDING:
        return Timing(base, False)
    for period in range(2 * base, min(len(series) // 3, LONGEST_CYCLE) + 1, base):
        if variation(period) <= REPEATS * lag_one:
            return Timing(period, variation(period) > ROUNDING)
    turns = [_turns(column) for column in series[::base].T]
    if max(turns, default=0) > TURNS * len(series) / base:
        raise UserError(
            "optimizer: a step is random, or irregular: the response to one gradient at one state "
            f"turns {max(turns)} times within {len(series)} steps, in no cycle (allowed: steps "
            "that are alike, follow a schedule or come in cycles; leave noise out of the chain)"
        )
    return Timing(base, True)


def _turns(column: Float[np.ndarray, " steps"]) -> int:
    """How often the values turn from rising to falling or back."""
    changes = np.diff(column)
    changes = changes[np.abs(changes) > 2 * ROUNDING]
    return int(np.sum(changes[1:] * changes[:-1] < 0.0))


@compiled
def _successive(step: StepMap, z: Float[Array, " inputs"], *, steps: int) -> Array:
    """``[h', Δx]`` [steps, outputs] at z = [h, g, x], all else as at each of the next steps."""

    def advance(state: PyTree, nothing: None) -> tuple[PyTree, Array]:
        del nothing
        now = jax.tree.leaves(state)
        moved = with_leaves(step.state, {i: now[i] for i in _moving(step)})
        h_next, dx = dataclasses.replace(step, state=moved)(z[:-2], z[-2], z[-1])
        return step.advance(state, 0.0, 0.0)[0], jnp.append(h_next, dx)

    start = jax.tree.map(jnp.asarray, step.state)
    return jax.lax.scan(advance, start, None, length=steps)[1]
