"""The mechanisms of an optimizer, measured on what it meets on a task's problems."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import numpy as np
import optax
from jaxtyping import Float

from optdyn.dynamics import Eigenmodes, StepMap
from optdyn.dynamics._operating_point import states_along
from optdyn.errors import UserError
from optdyn.inner_loop._statistics import MeanAndError, mean_and_error, mean_and_error_along
from optdyn.inner_loop._unroll import unroll
from optdyn.mechanisms._measured import (
    MeasuredAdaptation,
    MeasuredDensity,
    MeasuredLinear,
    MeasuredPath,
    MeasuredPortrait,
    MeasuredSchedule,
    MeasuredUpdate,
    Mechanisms,
)
from optdyn.mechanisms._nonlinear import (
    Adaptation,
    Portrait,
    adaptation,
    autonomous_schedule,
    effective_rates,
    portrait,
    update_function,
    updates_at,
)
from optdyn.tasks import Problem

QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
HISTOGRAM_BINS = 40
SMALLEST_PART = 1e-8
"""Gradients below this part of the largest one are taken for zero."""
GRID_POINTS, ADAPTATION_POINTS = 81, 17
IMPULSE_STEPS, FREQUENCIES = 100, 61
COMPONENTS_A_PROBLEM = 8
COMPONENTS_DRAWN = 6
PATH_STATES = 24
"""States kept of the autonomous path: dense where it starts, as there it moves fastest."""
PATH_DECADES = 6
"""Of gradient sizes at which updates along the path are told."""

Sizes = Float[np.ndarray, " G"]
EachProblem = Float[np.ndarray, " problems"]


@dataclasses.dataclass(frozen=True)
class Visited:
    """What an optimizer met: ``gradients`` [P, M, T] of M components of each of P problems."""

    gradients: Float[np.ndarray, "P M T"]
    updates: Float[np.ndarray, "P M T"]


def visit(tx: optax.GradientTransformation, problems: Problem, num_steps: int) -> Visited:
    """Gradients met and updates made on a batch of problems, for some components of each.

    Problems that leave the range of finite numbers are left out. Raises `UserError`
    when none is left.
    """

    @jax.jit
    def recorded(problems: Problem) -> Any:
        return jax.lax.map(
            lambda one: unroll(tx, one, num_steps, record=("gradients", "updates")).record,
            problems,
            batch_size=min(32, jax.tree.leaves(problems)[0].shape[0]),
        )

    record = recorded(problems)
    gradients, updates = (_some_components(record[name]) for name in ("gradients", "updates"))
    finite = np.all(np.isfinite(gradients) & np.isfinite(updates), axis=(1, 2))
    if not np.any(finite):
        raise UserError("mechanisms: every problem diverged")
    return Visited(gradients[finite], updates[finite])


def measure(step: StepMap, modes: Eigenmodes, visited: Visited) -> Mechanisms:
    """All mechanisms of one component, for the gradients it meets.

    ``modes``: those of its linearisation at the fixed point h*, whose state is taken
    as the resting one. Any optimizer that can be linearised there will do.

    Raises `UserError` for an optimizer that is not component-wise.
    """
    sizes = np.abs(visited.gradients)
    top = float(np.max(sizes))
    if not top > 0:
        raise UserError("mechanisms: all gradients of the problems are zero")
    rest = modes.linearization.state
    grid = np.geomspace(SMALLEST_PART * top, 10.0 * top, GRID_POINTS)
    start, at_rest = update_function(step, grid), update_function(step, grid, h=rest)
    paths = _paths(step, visited.gradients)
    rates = np.array([effective_rates(step, row.reshape(-1, row.shape[-1])) for row in paths])
    on_problems = np.mean(rates.reshape(paths.shape[:3]), axis=1)
    low, high = (np.quantile(sizes, q, axis=(1, 2)) for q in (0.05, 0.95))
    adapted = _adaptation(step, max(float(np.min(low)), SMALLEST_PART * top), top)
    seen = portrait(paths.reshape(-1, paths.shape[-1]))
    frequency = np.geomspace(np.pi / 1000.0, np.pi, FREQUENCIES)
    drawn = paths.reshape(-1, *paths.shape[2:])
    drawn = drawn[np.linspace(0, len(drawn) - 1, min(COMPONENTS_DRAWN, len(drawn))).astype(int)]
    return Mechanisms(
        density=_density(sizes, top),
        update=MeasuredUpdate(
            gradient=grid,
            start=start.response,
            rest=at_rest.response,
            threshold_start=start.threshold,
            threshold_rest=at_rest.threshold,
            rate_start=start.rate,
            rate_rest=at_rest.rate,
            largest_part=over_problems(start.linear_part_at(np.max(sizes, axis=(1, 2)))),
        ),
        schedule=MeasuredSchedule(
            rate=autonomous_schedule(step, visited.gradients.shape[2]),
            on_problems=mean_and_error_along(on_problems),
        ),
        adaptation=MeasuredAdaptation(
            gradient=adapted.gradient,
            rate=adapted.rate,
            slope=adapted.slope,
            ratio=over_problems(_ratio(adapted.gradient, adapted.rate, low, high)),
            slope_ratio=over_problems(_ratio(adapted.gradient, adapted.slope, low, high)),
        ),
        portrait=MeasuredPortrait(
            explained=seen.explained,
            trajectories=seen.project(drawn),
            fixed_curve=seen.project(adapted.h),
            gradient=adapted.gradient,
            rest=seen.project(rest),
            start=seen.project(step.h),
        ),
        path=_path(step, rest, seen, grid, visited.gradients.shape[2]),
        linear=MeasuredLinear(
            impulse=modes.impulse_response(IMPULSE_STEPS),
            frequency=frequency,
            response=np.abs(modes.frequency_response(frequency)),
        ),
    )


def over_problems(values: EachProblem) -> MeanAndError[float]:
    """Mean and standard error over problems, of those where the number exists."""
    known = values[np.isfinite(values)]
    return mean_and_error(known) if len(known) else MeanAndError(math.nan, math.nan)


def _some_components(tree: Any) -> Float[np.ndarray, "P M T"]:
    """Of each problem's pytree [P, T, ...] a few components, evenly spread, time last."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]
    rows = np.concatenate([leaf.reshape(*leaf.shape[:2], -1) for leaf in leaves], axis=2)
    chosen = np.linspace(0, rows.shape[2] - 1, min(COMPONENTS_A_PROBLEM, rows.shape[2]))
    return np.moveaxis(rows[:, :, np.unique(chosen.round().astype(int))], 1, 2)


def _density(sizes: Float[np.ndarray, "P M T"], top: float) -> MeasuredDensity:
    edges = np.geomspace(SMALLEST_PART * top, top, HISTOGRAM_BINS + 1)
    count, _ = np.histogram(np.clip(sizes, edges[0], edges[-1]), edges)
    quantiles = np.quantile(sizes, QUANTILES)
    return MeasuredDensity(np.array(QUANTILES), quantiles, count.astype(float), edges)


def _adaptation(step: StepMap, low: float, high: float) -> Adaptation:
    """`adaptation` at positive and negative gradients, from the smallest outwards."""
    sizes = np.geomspace(low, max(high, 10.0 * low), ADAPTATION_POINTS)
    halves = [adaptation(step, sign * sizes) for sign in (-1.0, 1.0)]
    joined = {
        field.name: np.concatenate(
            [getattr(halves[0], field.name)[::-1], getattr(halves[1], field.name)]
        )
        for field in dataclasses.fields(Adaptation)
    }
    return Adaptation(**joined)


def _path(
    step: StepMap, rest: np.ndarray, seen: Portrait, sizes: Sizes, num_steps: int
) -> MeasuredPath:
    """The autonomous path's states, and the update at every other one of the upper ``sizes``."""
    states = _paths(step, np.zeros((1, 1, num_steps)))[0, 0]
    spread = np.geomspace(1.0, num_steps, min(PATH_STATES, num_steps)).round().astype(int)
    steps = np.unique(np.concatenate([[0], spread - 1]))
    kept = np.concatenate([states[steps], rest[None]])
    upper = sizes[sizes >= sizes[-1] * 10.0**-PATH_DECADES][::-2][::-1]
    gradient = np.concatenate([-upper[::-1], upper])
    return MeasuredPath(
        step=np.append(steps.astype(float), np.inf),
        gradient=gradient,
        update=updates_at(step, kept, gradient),
        portrait=seen.project(kept),
    )


def _ratio(gradient: Sizes, rates: Sizes, low: EachProblem, high: EachProblem) -> EachProblem:
    """Rate at |g| = high over that at low, the mean of both signs where both are known."""
    half = len(gradient) // 2
    sizes = np.log(gradient[half:])
    both = np.stack([rates[:half][::-1], rates[half:]])
    known = np.all(np.isfinite(both), axis=0)
    if not np.any(known):
        return np.full(len(low), np.nan)
    rate = np.mean(both, axis=0)[known]
    smallest = np.exp(sizes[0])
    at = [np.interp(np.log(np.maximum(g, smallest)), sizes[known], rate) for g in (high, low)]
    with np.errstate(divide="ignore", invalid="ignore"):
        return at[0] / at[1]


def _paths(step: StepMap, gradients: Float[np.ndarray, "P M T"]) -> Float[np.ndarray, "P M T N"]:
    """The state before each step, for every component's history of gradients."""
    flat = gradients.reshape(-1, gradients.shape[-1])
    return states_along(step, flat)[:, :-1].reshape(*gradients.shape, -1)
