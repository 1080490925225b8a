"""Schedules: which counters of an optimizer change its rate, from where to where."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from optdyn.dynamics._counts import LAST, sampled_counts
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
# What still changes after this part of the longest range seen has not ended.
LATE = 0.4
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
    """How counters set a rate, as parts of its peak: the learning rate, or the weight decay.

    ``counters``: the positions of those in the flattened state. ``start``: the rate at count 0;
    ``peak``: the count at which it is largest for the first time; ``end``: the rate from
    ``end_count`` on, which is None where it still changes after 10⁷ steps. ``curve`` [K]: the
    rate at ``counts`` [K] (see `sampled_counts`: what happens between two of those is not
    seen). ``height``: the size of the update that was seen at the peak.
    """

    counters: tuple[int, ...]
    start: float
    peak: int
    end: float
    end_count: int | None
    counts: Int[np.ndarray, " K"]
    curve: Float[np.ndarray, " K"]
    height: float

    def part_at(self, step: StepMap) -> float:
        """The rate where the counters of ``step`` stand, as part of the peak."""
        parts = jax.tree.leaves(step.state)
        count = max(int(np.max(np.asarray(parts[i]))) for i in self.counters)
        return float(np.interp(count, self.counts, self.curve))

    def words(self, rate: float = 1.0, what: str = "rate") -> str:
        """Start, peak and end in words; ``rate``: the learning rate at the peak.

        From count 33 on, phases that are shorter than the steps between ``counts`` may be missed.
        """
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
        return f"the {what} follows the step count: " + ", ".join(parts)


@dataclasses.dataclass(frozen=True)
class Counting:
    """What counters do. ``schedule``: the rate's, or None. ``transient``: positions of
    counters whose effect dies out by itself while the rate does not, as a bias correction does.
    ``decay``: the schedule of a weight decay that does not follow the rate, or None; its
    ``height`` is the largest decay a step.
    """

    schedule: Schedule | None
    transient: tuple[int, ...]
    decay: Schedule | None = None


def counting(step: StepMap, gradient_scale: float) -> Counting:
    """Compare the update to one gradient, at one memory, over the counts of `sampled_counts`.

    The weight decay is read apart: at zero gradients, parameters of 1 and the memory that the
    optimizer starts with. The memory is ``step``'s own where it is in the middle of a training,
    else the one that a constant gradient of ``gradient_scale`` leads to.

    Raises `UserError` as `timing` does.
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
    counts = sampled_counts(step)
    weighted = [_phases(_at_rest(step, size), period, 0.0) for size in (1.0, 2.0)]

    def decays(at: Any, counters: tuple[int, ...], others: int, size: int = 1) -> np.ndarray:
        return _largest(_responses(weighted[size - 1], np.asarray(at), counters, others, 0.0))

    joint = decays(counts, clock.counters, 0)
    best = counts[[np.argmax(joint)]]
    twice = decays(best, clock.counters, 0, size=2)
    decaying = bool(np.max(joint) > 0.0) and np.allclose(twice, 2 * np.max(joint), rtol=1e-6)
    phases = _phases(step, period, gradient_scale)
    x = step.around.own_param
    apart = decaying and x != 0.0 and _adds_up(phases, weighted[0], best, gradient_scale)

    def rates(at: Any, counters: tuple[int, ...], others: int) -> np.ndarray:
        at = np.asarray(at)
        seen = _responses(phases, at, counters, others, gradient_scale)
        if apart:
            seen = seen - x * _responses(weighted[0], at, counters, others, 0.0)
        return _largest(seen)

    chosen, transient = _effects(clock.counters, counts, rates)
    schedule = decay = None
    if chosen:
        schedule = _schedule(chosen, counts, lambda at: rates(at, chosen, LONG), clock.wide)
    scheduled, _ = _effects(clock.counters, counts, decays) if decaying else ((), ())
    if scheduled:
        decay = _schedule(scheduled, counts, lambda at: decays(at, scheduled, LONG), clock.wide)
        if schedule is not None and np.allclose(decay.curve, schedule.curve, atol=UNCHANGED):
            decay = None
    return Counting(schedule, transient, decay)


def _effects(
    counters: tuple[int, ...], counts: np.ndarray, read: Callable[..., np.ndarray]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Which counters change what ``read(counts, counters, others)`` gives: for good, and at first.

    ``others``: where all other counters are.
    """
    best = int(counts[np.argmax(read(counts, counters, 0))])
    scheduled: list[int] = []
    transient: list[int] = []
    for i in counters:
        alone = read(counts, (i,), best)
        if np.ptp(alone) <= UNCHANGED * np.max(alone):
            continue
        at = functools.partial(read, counters=(i,), others=best)
        (transient if _dies_out(alone, counts, at) else scheduled).append(i)
    return tuple(scheduled), tuple(transient)


def _at_rest(step: StepMap, size: float) -> StepMap:
    """All parameters at ``size``, no gradients, and the memory that the optimizer starts with."""

    def moved(leaf: Array, value: float) -> Array:
        floating = jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
        return jnp.full_like(leaf, value) if floating else leaf

    with double_precision():
        params = jax.tree.map(lambda p: moved(p, size), step.around.params)
        gradients = jax.tree.map(lambda g: moved(g, 0.0), step.around.gradients)
        around = dataclasses.replace(step.around, params=params, gradients=gradients)
        return dataclasses.replace(step, around=around, state=step.fresh_state(params))


def _adds_up(
    phases: list[StepMap], weighted: list[StepMap], count: np.ndarray, gradient: float
) -> bool:
    """Whether the decay that is seen without gradients is there beside them, too."""
    counters = phases[0].clock.counters
    with double_precision():
        around = phases[0].around
        further = around.put(around.params, around.own_param + 1.0)
        around = dataclasses.replace(around, params=further)
    moved = [dataclasses.replace(phase, around=around) for phase in phases]
    here, there = (_responses(at, count, counters, 0, gradient) for at in (phases, moved))
    return np.allclose(there - here, _responses(weighted, count, counters, 0, 0.0), rtol=1e-6)


def at_counts(step: StepMap, found: Counting, schedule: int | None = None) -> StepMap:
    """``step`` with its schedule at that count (its peak by default), transients died out.

    A weight decay with a schedule of its own is at its own peak.
    """
    state = step.state
    if found.decay is not None:
        step = dataclasses.replace(
            step, state=set_counters(step, found.decay.peak, found.decay.counters)
        )
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
) -> Float[np.ndarray, "phases K"]:
    """Δx at each count and each step of a cycle; ``others``: where all other counters are."""
    first = phases[0]
    padded = np.resize(counts, -(-len(counts) // CHUNK) * CHUNK)
    run = PROGRAMS.recall((first.kind, counters), lambda: _compiled(counters))
    leaves = [jax.tree.leaves(phase.state) for phase in phases]
    found = []
    with double_precision():
        for phase, parts in zip(phases, leaves, strict=True):
            # A counter that grows once in a cycle has not grown yet at the start of it.
            ahead = [_most(parts[i]) - _most(leaves[0][i]) for i in first.clock.counters]
            at = dataclasses.replace(phase, state=set_counters(phase, others))
            arrays = (jnp.asarray(ahead), jnp.asarray(gradient, float))
            seen = [run(at, jnp.asarray(c), *arrays) for c in padded.reshape(-1, CHUNK)]
            found.append(np.concatenate([np.asarray(s) for s in seen])[: len(counts)])
    return np.nan_to_num(np.array(found), posinf=0.0, neginf=0.0)


def _largest(seen: Float[np.ndarray, "phases K"]) -> Float[np.ndarray, " K"]:
    largest: np.ndarray = np.max(np.abs(seen), axis=0)
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


def _dies_out(
    curve: Float[np.ndarray, " K"],
    counts: Int[np.ndarray, " K"],
    at: Callable[[Any], np.ndarray],
) -> bool:
    """Whether the response approaches an end above 0 as an exponential does."""
    end = curve[-1]
    if end <= UNCHANGED * np.max(curve):
        return False
    distance = np.abs(curve / end - 1.0)
    far = np.flatnonzero(distance >= NEAR)
    start = int(far[-1]) + 1 if len(far) else 0
    near = start + np.flatnonzero(distance[start:] > NEARER)
    if len(near) < 2 or counts[near[-1]] - counts[near[0]] < 2:
        return False
    first, last = int(counts[near[0]]), int(counts[near[-1]])
    middle = (first + last) // 2
    fraction = (middle - first) / (last - first)
    logs = np.log(distance[[near[0], near[-1]]])
    expected = logs[0] + fraction * (logs[1] - logs[0])
    between = abs(float(at([middle])[0]) / end - 1.0)
    return between > 0.0 and abs(np.log(between) - expected) < EXPONENTIAL * abs(logs[1] - logs[0])


def _schedule(
    counters: tuple[int, ...],
    sampled: Int[np.ndarray, " K"],
    at: Callable[[Any], np.ndarray],
    exact: bool,
) -> Schedule:
    curve = at(sampled)
    best = int(np.argmax(curve >= np.max(curve) * (1.0 - ENDED)))
    low, high = int(sampled[max(best - 1, 0)]), int(sampled[min(best + 1, len(sampled) - 1)])
    peak, height = int(sampled[best]), float(curve[best])
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
    if sampled[last] < LATE * LAST:
        low, high = int(sampled[last]), int(sampled[last + 1])
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
        counts=sampled,
        curve=curve / height,
        height=height,
    )
