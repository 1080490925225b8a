"""Schedules: which counters of an optimizer change its rate, from where to where."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from optdyn.dynamics._jacobians import copies_at_once
from optdyn.dynamics._remembered import Remembered
from optdyn.dynamics._settling import settle
from optdyn.dynamics._step_map import StepMap, set_counters
from optdyn.dynamics._timing import timing
from optdyn.precision import double_precision

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int

LONG = 20_000
"""So many steps a history is long."""
LAST = 10**7
"""Schedules that change after so many steps are not seen to the end."""
COUNTS = np.unique(np.concatenate([np.arange(33), np.geomspace(33, LAST, 95).astype(np.int64)]))
UNCHANGED = 1e-6
# A schedule has ended where it stays within this part of its peak; wider where counters are
# 32-bit ones, in which schedules are rounded.
ENDED, ENDED_ROUNDED = 1e-12, 1e-6
# A bias correction approaches its end as an exponential does, between these distances.
NEAR, NEARER = 1e-2, 1e-7
EXPONENTIAL = 0.05
CHUNK = 128


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How counters set the rate, as parts of its peak.

    ``counters``: the positions of those in the flattened state. ``start``: the rate at count 0;
    ``peak``: the count at which it is largest for the first time; ``end``: the rate from
    ``end_count`` on, which is None where it still changes after 10⁷ steps. ``curve`` [K]: the
    rate at ``counts`` [K].
    """

    counters: tuple[int, ...]
    start: float
    peak: int
    end: float
    end_count: int | None
    counts: Int[np.ndarray, " K"]
    curve: Float[np.ndarray, " K"]

    def part_at(self, step: StepMap) -> float:
        """The rate where the counters of ``step`` stand, as part of the peak."""
        parts = jax.tree.leaves(step.state)
        count = max(int(np.max(np.asarray(parts[i]))) for i in self.counters)
        return float(np.interp(count, self.counts, self.curve))

    def words(self, rate: float = 1.0) -> str:
        """Start, peak and end in words; ``rate``: the learning rate at the peak."""
        start, end = (part * rate if part > ENDED else 0.0 for part in (self.start, self.end))
        last = (
            f"{end:.4g} at count {LAST:g} and still changing"
            if self.end_count is None
            else f"{end:.4g} from count {self.end_count} on"
        )
        parts = [f"{start:.4g} at count 0", f"{rate:.4g} at count {self.peak}", last]
        if self.peak == 0:
            parts.pop(0)
        if self.peak == self.end_count:
            parts[-2:] = [f"{rate:.4g} from count {self.peak} on"]
        return "the rate follows the step count: " + ", ".join(parts)


@dataclasses.dataclass(frozen=True)
class Counting:
    """What counters do. ``schedule``: the one there is, or None. ``transient``: positions of
    counters whose effect dies out by itself while the rate does not, as a bias correction does.
    """

    schedule: Schedule | None
    transient: tuple[int, ...]


def counting(step: StepMap, gradient_scale: float) -> Counting:
    """Compare the update to one gradient, at one memory, over all counts up to 10⁷.

    The memory is that of ``step`` where it is in the middle of a training, else the one that
    a constant gradient of ``gradient_scale`` leads to. Raises `UserError` as `timing` does.
    """
    clock = step.clock
    if not clock.counters or clock.countdowns:
        return Counting(None, ())
    start = dataclasses.replace(step, state=set_counters(step, 0))
    period = timing(start).period
    if not np.any(step.h):
        pushed = settle(step, gradient_scale, alternating=False, steps=LONG)
        if all(np.all(np.isfinite(leaf)) for leaf in _floats(pushed)):
            step = dataclasses.replace(step, state=pushed)
    phases = _phases(step, period, gradient_scale)

    def responses(counts: Any, counters: tuple[int, ...], others: int) -> np.ndarray:
        return _responses(phases, np.asarray(counts), counters, others, gradient_scale)

    joint = responses(COUNTS, clock.counters, 0)
    best = int(COUNTS[np.argmax(joint)])
    transient: list[int] = []
    scheduled: list[int] = []
    for i in clock.counters:
        alone = responses(COUNTS, (i,), best)
        if np.ptp(alone) <= UNCHANGED * np.max(alone):
            continue
        dies_out = _dies_out(alone, functools.partial(responses, counters=(i,), others=best))
        (transient if dies_out else scheduled).append(i)
    if not scheduled:
        return Counting(None, tuple(transient))
    chosen = tuple(scheduled)
    schedule = _schedule(chosen, lambda counts: responses(counts, chosen, LONG), clock.wide)
    return Counting(schedule, tuple(transient))


def at_counts(step: StepMap, found: Counting, schedule: int | None = None) -> StepMap:
    """``step`` with its schedule at that count (its peak by default), transients died out."""
    state = step.state
    if found.transient:
        step = dataclasses.replace(step, state=set_counters(step, LONG, found.transient))
        state = step.state
    if found.schedule is not None:
        count = found.schedule.peak if schedule is None else schedule
        state = set_counters(step, count, found.schedule.counters)
    return dataclasses.replace(step, state=state)


def _floats(state: Any) -> list[np.ndarray]:
    leaves = [leaf for leaf in jax.tree.leaves(state) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return [np.asarray(leaf, np.float64) for leaf in leaves]


def _phases(step: StepMap, period: int, gradient: float) -> list[StepMap]:
    """The step map at each step of a cycle, with the memory that it has at the first."""
    phases = [step]
    with double_precision():
        h, x, state = jnp.asarray(step.h), step.around.own_param, step.state
        for _ in range(period - 1):
            state, _ = phases[-1].advance(state, gradient, x)
            here = dataclasses.replace(step, state=state)
            phases.append(dataclasses.replace(step, state=here.state_with(h)))
    return phases


PROGRAMS: Remembered[Callable[..., Array]] = Remembered()


def _responses(
    phases: list[StepMap],
    counts: Int[np.ndarray, " K"],
    counters: tuple[int, ...],
    others: int,
    gradient: float,
) -> Float[np.ndarray, " K"]:
    """|Δx| at each count, the largest over a cycle; ``others``: where all other counters are."""
    first = phases[0]
    padded = np.resize(counts, -(-len(counts) // CHUNK) * CHUNK)
    run = PROGRAMS.recall((first.kind, counters), lambda: _compiled(counters))
    leaves = [jax.tree.leaves(phase.state) for phase in phases]
    largest = np.zeros(len(counts))
    with double_precision():
        for phase, parts in zip(phases, leaves, strict=True):
            # A counter that grows once in a cycle has not grown yet at the start of it.
            ahead = [_most(parts[i]) - _most(leaves[0][i]) for i in first.clock.counters]
            at = dataclasses.replace(phase, state=set_counters(phase, others))
            arrays = (jnp.asarray(ahead), jnp.asarray(gradient, float))
            seen = [run(at, jnp.asarray(c), *arrays) for c in padded.reshape(-1, CHUNK)]
            sizes = np.abs(np.concatenate([np.asarray(s) for s in seen]))[: len(counts)]
            largest = np.maximum(largest, np.nan_to_num(sizes, posinf=0.0))
    return largest


def _most(leaf: Array) -> int:
    return int(np.max(np.asarray(leaf)))


def _compiled(counters: tuple[int, ...]) -> Callable[..., Array]:
    def run(step: StepMap, counts: Array, ahead: Array, gradient: Array) -> Array:
        parts, treedef = jax.tree.flatten(step.state)
        h, x = step.vector(step.state), step.around.of(step.around.params)

        def update(count: Array) -> Array:
            moved = list(parts)
            for k, i in enumerate(step.clock.counters):
                part = jnp.asarray(parts[i])
                value = count if i in counters else jnp.ravel(part)[0].astype(count.dtype)
                moved[i] = jnp.full_like(part, (value + ahead[k]).astype(part.dtype))
            here = dataclasses.replace(step, state=jax.tree.unflatten(treedef, moved))
            return here(h, gradient, x)[1]

        return jax.lax.map(update, counts, batch_size=copies_at_once(step, CHUNK))

    return jax.jit(run)


def _dies_out(curve: Float[np.ndarray, " K"], at: Callable[[Any], np.ndarray]) -> bool:
    """Whether the response approaches an end above 0 as an exponential does."""
    end = curve[-1]
    if end <= UNCHANGED * np.max(curve):
        return False
    distance = np.abs(curve / end - 1.0)
    far = np.flatnonzero(distance >= NEAR)
    start = int(far[-1]) + 1 if len(far) else 0
    near = start + np.flatnonzero(distance[start:] > NEARER)
    if len(near) < 2 or COUNTS[near[-1]] - COUNTS[near[0]] < 2:
        return False
    first, last = int(COUNTS[near[0]]), int(COUNTS[near[-1]])
    middle = (first + last) // 2
    fraction = (middle - first) / (last - first)
    logs = np.log(distance[[near[0], near[-1]]])
    expected = logs[0] + fraction * (logs[1] - logs[0])
    between = abs(float(at([middle])[0]) / end - 1.0)
    return between > 0.0 and abs(np.log(between) - expected) < EXPONENTIAL * abs(logs[1] - logs[0])


def _schedule(counters: tuple[int, ...], at: Callable[[Any], np.ndarray], exact: bool) -> Schedule:
    curve = at(COUNTS)
    best = int(np.argmax(curve >= np.max(curve) * (1.0 - ENDED)))
    low, high = int(COUNTS[max(best - 1, 0)]), int(COUNTS[min(best + 1, len(COUNTS) - 1)])
    peak, height = int(COUNTS[best]), float(curve[best])
    while True:
        counts = np.unique(np.linspace(low, high, CHUNK).astype(np.int64))
        seen = at(counts)
        k = int(np.argmax(seen >= np.max(seen) * (1.0 - ENDED)))
        if seen[k] >= height * (1.0 - ENDED):
            peak, height = int(counts[k]), float(seen[k])
        if len(counts) >= high - low + 1:
            break
        low, high = int(counts[max(k - 1, 0)]), int(counts[min(k + 1, len(counts) - 1)])
    allowed = (ENDED if exact else ENDED_ROUNDED) * height
    differs = np.flatnonzero(np.abs(curve - curve[-1]) > allowed)
    last = int(differs[-1]) if len(differs) else 0
    end_count: int | None = None
    # What falls for ever changes little at the end of so long a range.
    if last < len(COUNTS) - 8:
        low, high = int(COUNTS[last]), int(COUNTS[last + 1])
        while high - low > 1:
            middle = (low + high) // 2
            if abs(at([middle])[0] - curve[-1]) > allowed:
                low = middle
            else:
                high = middle
        end_count = high
    return Schedule(
        counters=counters,
        start=float(curve[0] / height),
        peak=peak,
        end=float(curve[-1] / height),
        end_count=end_count,
        counts=COUNTS,
        curve=curve / height,
    )
