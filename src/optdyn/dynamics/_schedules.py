"""Schedules: which counters of an optimizer change its rate, from where to where."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Literal
from jaxtyping import Array, Float, Int

from optdyn.dynamics._clockwork import timing
from optdyn.dynamics._jacobians import copies_at_once
from optdyn.dynamics._operating_point import settle
from optdyn.dynamics._place import with_leaves
from optdyn.dynamics._released import programs_in
from optdyn.dynamics._remembered import compiled
from optdyn.dynamics._step_map import StepMap
from optdyn.precision import double_precision

LONG = 20_000
"""So many steps a history is long."""
LAST = 10**7
"""Schedules that change after so many steps are not seen to the end."""
EVERY = 33
"""All counts below this are looked at."""
FEWEST, MOST = 128, 2048
"""So many counts are looked at: the most where the training is small, fewer where it is large."""
NUMBERS = 2**24
# So many constants of the update, and sums of two of them, are taken for ends of phases.
CONSTANTS, IN_AN_ARRAY = 24, 64
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

Counts = Int[np.ndarray, " K"]
Curve = Float[np.ndarray, " K"]
Counters = tuple[int, ...]
"""Positions of counters in the flattened state."""


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
        count = max(step.counts[i] for i in self.counters)
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
    period = timing(step.at_count(0)).period
    if not np.any(step.h):
        pushed = settle(step, gradient_scale, alternating=False, steps=LONG)
        floats = [leaf for leaf in jax.tree.leaves(pushed) if _is_float(leaf)]
        if all(np.all(np.isfinite(np.asarray(leaf, np.float64))) for leaf in floats):
            step = dataclasses.replace(step, state=pushed)
    counts = sampled_counts(step)
    weighted = [_phases(_at_rest(step, size), period, 0.0) for size in (1.0, 2.0)]

    def decays(at: Any, counters: Counters, others: int, size: int = 1) -> np.ndarray:
        seen = _responses(weighted[size - 1], at, counters, others, 0.0)
        return np.asarray(np.max(np.abs(seen), axis=0))

    joint = decays(counts, clock.counters, 0)
    best = counts[[np.argmax(joint)]]
    twice = decays(best, clock.counters, 0, size=2)
    decaying = bool(np.max(joint) > 0.0) and np.allclose(twice, 2 * np.max(joint), rtol=1e-6)
    phases = _phases(step, period, gradient_scale)
    x = step.around.own_param
    apart = decaying and x != 0.0 and _adds_up(phases, weighted[0], best, gradient_scale)

    def rates(at: Any, counters: Counters, others: int) -> np.ndarray:
        seen = _responses(phases, at, counters, others, gradient_scale)
        if apart:
            seen = seen - x * _responses(weighted[0], at, counters, others, 0.0)
        return np.asarray(np.max(np.abs(seen), axis=0))

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
    counters: Counters, counts: Counts, read: Callable[..., np.ndarray]
) -> tuple[Counters, Counters]:
    """Which counters change what ``read(counts, counters, others)`` gives: for good, and at first.

    ``others``: where all other counters are.
    """
    best = int(counts[np.argmax(read(counts, counters, 0))])
    scheduled, transient = list[int](), list[int]()
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
        return jnp.full_like(leaf, value) if _is_float(leaf) else leaf

    with double_precision():
        params = jax.tree.map(lambda p: moved(p, size), step.around.params)
        gradients = jax.tree.map(lambda g: moved(g, 0.0), step.around.gradients)
        fresh = dataclasses.replace(step, state=step.fresh_state(params))
        return fresh.among(params, gradients)


def _adds_up(
    phases: list[StepMap], weighted: list[StepMap], count: np.ndarray, gradient: float
) -> bool:
    """Whether the decay that is seen without gradients is there beside them, too."""
    counters = phases[0].clock.counters
    with double_precision():
        around = phases[0].around
        further = around.put(around.params, around.own_param + 1.0)
    moved = [phase.among(further, around.gradients) for phase in phases]
    here, there = (_responses(at, count, counters, 0, gradient) for at in (phases, moved))
    return np.allclose(there - here, _responses(weighted, count, counters, 0, 0.0), rtol=1e-6)


def at_counts(step: StepMap, found: Counting) -> StepMap:
    """``step`` with its schedules, of rate and decay, at their peaks, and transients died out."""
    for one in (found.decay, found.transient, found.schedule):
        if isinstance(one, Schedule):
            step = step.at_count(one.peak, one.counters)
        elif one:
            step = step.at_count(LONG, one)
    return step


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


def _responses(
    phases: list[StepMap], counts: Any, counters: Counters, others: int, gradient: float
) -> Float[np.ndarray, "phases K"]:
    """Δx at each count and each step of a cycle; ``others``: where all other counters are."""
    padded = np.resize(counts, -(-len(counts) // CHUNK) * CHUNK).reshape(-1, CHUNK)
    first, found = phases[0].counts, []
    for phase in phases:
        # A counter that grows once in a cycle has not grown yet at the start of it.
        ahead = np.array([now - first[i] for i, now in phase.counts.items()])
        at = phase.at_count(others)
        seen = [_updates(at, c, ahead, np.float64(gradient), counters=counters) for c in padded]
        found.append(np.concatenate([np.asarray(s) for s in seen])[: len(counts)])
    return np.nan_to_num(np.array(found), posinf=0.0, neginf=0.0)


@compiled
def _updates(
    step: StepMap, counts: Array, ahead: Array, gradient: Array, *, counters: Counters
) -> Array:
    parts = jax.tree.leaves(step.state)
    h, x = step.vector(step.state), step.around.of(step.around.params)

    def update(count: Array) -> Array:
        moved = {}
        for k, i in enumerate(step.clock.counters):
            part = jnp.asarray(parts[i])
            value = count if i in counters else jnp.ravel(part)[0].astype(count.dtype)
            moved[i] = jnp.full_like(part, (value + ahead[k]).astype(part.dtype))
        return dataclasses.replace(step, state=with_leaves(step.state, moved))(h, gradient, x)[1]

    return jax.lax.map(update, counts, batch_size=copies_at_once(step, CHUNK))


def _dies_out(curve: Curve, counts: Counts, at: Callable[[Any], np.ndarray]) -> bool:
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
    counters: Counters, sampled: Counts, at: Callable[[Any], np.ndarray], exact: bool
) -> Schedule:
    curve = at(sampled)
    counts, seen, peak, height = sampled, curve, 0, 0.0
    while True:  # nearer and nearer about the highest
        k = int(np.argmax(seen >= np.max(seen) * (1.0 - ENDED)))
        if seen[k] >= height * (1.0 - ENDED):
            peak, height = int(counts[k]), float(seen[k])
        if len(counts) > counts[-1] - counts[0]:
            break
        low, high = int(counts[max(k - 1, 0)]), int(counts[min(k + 1, len(counts) - 1)])
        counts = np.unique(np.linspace(low, high, CHUNK).astype(np.int64))
        seen = at(counts)
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


def sampled_counts(step: StepMap) -> Int[np.ndarray, " K"]:
    """Counts up to 10⁷: all small ones, then evenly on a logarithmic axis.

    From 33 on, 2015 counts that are 0.63 % apart; for a large training fewer, at least 95, 14 %
    apart. And each whole number that the update itself names, sums of two of them, and their
    neighbours: there one phase of a schedule ends, however short it is.
    """
    number = int(np.clip(NUMBERS // step.size, FEWEST, MOST))
    far = np.geomspace(EVERY, LAST, number - EVERY).astype(np.int64)
    named = _named(step)
    near = [named + off for off in (-1, 0, 1)]
    counts = np.unique(np.concatenate([np.arange(EVERY), far, *near]))
    return counts[(counts >= 0) & (counts <= LAST)]


def _named(step: StepMap) -> Int[np.ndarray, " C"]:
    around = step.around
    with double_precision():
        try:
            traced = jax.make_jaxpr(step.update_all)(around.gradients, step.state, around.params)
        except Exception:  # the user's own code may raise anything; that is seen elsewhere
            return np.zeros(0, np.int64)
    found = {n for value in _constants(traced) for n in _whole_numbers(value)}
    few = sorted(found)[:CONSTANTS]
    sums = [a + b for a, b in itertools.combinations_with_replacement(few, 2)]
    return np.array([*few, *sums], np.int64)


def _constants(jaxpr: Any) -> Iterator[Any]:
    """The constants in a program and in the programs within it."""
    if isinstance(jaxpr, ClosedJaxpr):
        yield from jaxpr.consts
        jaxpr = jaxpr.jaxpr
    for equation in jaxpr.eqns:
        yield from (var.val for var in equation.invars if isinstance(var, Literal))
        for program in programs_in(equation.params):
            yield from _constants(program)


def _whole_numbers(value: Any) -> list[int]:
    if np.size(value) > IN_AN_ARRAY or np.result_type(value).kind not in "iuf":
        return []
    numbers = np.ravel(np.asarray(value))
    numbers = numbers[np.isfinite(numbers)]
    return [int(n) for n in numbers if EVERY <= n <= LAST and n == int(n)]


def _is_float(leaf: Any) -> bool:
    return bool(jnp.issubdtype(jnp.result_type(leaf), jnp.floating))
