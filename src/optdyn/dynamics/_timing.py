"""How a step depends on the step count: cycles of steps, schedules, and what is irregular."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from optdyn.dynamics._clockwork import LONGEST_CYCLE
from optdyn.dynamics._remembered import Remembered
from optdyn.errors import UserError
from optdyn.precision import double_precision

if TYPE_CHECKING:
    from jaxtyping import Array, Float, PyTree

    from optdyn.dynamics._step_map import StepMap

STEPS = 64
"""At least so many successive steps are compared."""
CYCLES = 4
# Differences below this part of a response are rounding.
ROUNDING = 1e-7
# A cycle repeats after p steps so much better than neighbouring steps agree.
REPEATS = 0.25
# A response that turns more often than at this part of the steps follows no schedule.
TURNS = 0.25


@dataclasses.dataclass(frozen=True)
class Timing:
    """``period``: the steps of a cycle, 1 for none. ``varies``: it also changes slowly."""

    period: int
    varies: bool


TIMINGS: Remembered[Timing] = Remembered()
PROGRAMS: Remembered[Callable[..., Array]] = Remembered()


def timing(step: StepMap) -> Timing:
    """Compare the response to one gradient, at one memory, at successive steps.

    Raises `UserError` where it changes irregularly from step to step.
    """
    clock = step.clock
    moving = (*clock.discrete, *clock.counters, *step.layout.shared)
    if not moving:
        return Timing(1, False)
    parts = jax.tree.leaves(step.state)
    values = tuple(np.asarray(parts[i]).ravel()[:4].tobytes() for i in moving)
    return TIMINGS.recall((step.kind, values), lambda: _timing(step))


def successive_responses(step: StepMap, steps: int) -> Float[np.ndarray, "steps outputs"]:
    """``[h', Δx]`` at one generic point, counters and flags as at each of the next steps."""
    rng = np.random.default_rng(4)
    n = len(step.names)
    run = PROGRAMS.recall((step.kind, steps), lambda: _compiled(steps))
    with double_precision():
        return np.asarray(run(step, rng.uniform(0.5, 1.5, n + 2)))


def _timing(step: StepMap) -> Timing:
    base = step.clock.period
    series = successive_responses(step, max(STEPS, CYCLES * base))
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


def _compiled(steps: int) -> Callable[..., Array]:
    def run(step: StepMap, z: Float[Array, " inputs"]) -> Float[Array, "steps outputs"]:
        fixed, treedef = jax.tree.flatten(step.state)
        # A number that all components share may move by itself too, as a step size that decays.
        moving = {*step.clock.discrete, *step.clock.counters, *step.layout.shared}

        def advance(state: PyTree, nothing: None) -> tuple[PyTree, Array]:
            del nothing
            now = jax.tree.leaves(state)
            parts = [now[i] if i in moving else part for i, part in enumerate(fixed)]
            here = dataclasses.replace(step, state=jax.tree.unflatten(treedef, parts))
            h_next, dx = here(z[:-2], z[-2], z[-1])
            return step.advance(state, 0.0, 0.0)[0], jnp.append(h_next, dx)

        start = jax.tree.map(jnp.asarray, step.state)
        return jax.lax.scan(advance, start, None, length=steps)[1]

    return jax.jit(run)
