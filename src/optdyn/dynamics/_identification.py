"""Which optimizer is this? The nearest hand-designed one by what it does with gradients."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection, Iterator
from typing import Unpack

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
from jaxtyping import Array, Float

from optdyn.dynamics import _words as words
from optdyn.dynamics._candidates import CANDIDATES, Candidate
from optdyn.dynamics._place import Place
from optdyn.dynamics._responses import (
    LARGEST_PROBE,
    Responses,
    respond,
    responses,
    unfelt_by_others,
)
from optdyn.dynamics._schedules import Schedule, counting
from optdyn.dynamics._step_map import Optimizer, StepMap, step_map
from optdyn.errors import UserError, finite_number, require_choice, require_number
from optdyn.in_words import InWords
from optdyn.precision import double_precision

REFINED = 2
MOST_EVALUATIONS = 60
EXACT = 1e-6
"""Relative residual below which a candidate is the optimizer, for all that can be seen."""
STANDING_STILL = "standing_still"
COMPARABLE = 1.02
"""Residuals within this factor of the smallest count as equal: the simplest is the nearest."""
# AggMo's modes with decay rates this near are one mode.
COINCIDENT = 1e-6
# Responses this far below the largest are rounding, not behaviour.
NEGLIGIBLE = 1e-12

Point = Float[np.ndarray, " n"]
Target = Float[np.ndarray, " PT"]
Weights = Float[np.ndarray, "P 1"]


@dataclasses.dataclass(frozen=True)
class Fit:
    """A hand-designed optimizer fitted to another's responses.

    ``residual``: the root mean square, over the probes, of ‖difference‖/‖response‖ with
    norms over time. 0: it behaves the same; 1: no better than standing still. To a probe that
    the optimizer leaves unanswered belongs the largest response to that amplitude.
    ``updates`` [P, T]: what the fitted optimizer does in each probe.
    """

    name: str
    hyperparameters: dict[str, float]
    residual: float
    updates: Float[np.ndarray, "P T"]


@dataclasses.dataclass(frozen=True)
class Identification(InWords):
    """The result of `identify`: ``fits``, one a candidate, by rising residual.

    ``nearest``: the fit with the smallest residual, or the one of fewest hyperparameters
    among those not distinguishable from it (2 %, or all below 1e-6): momentum is also
    AggMo with two empty modes. Where no gradient changes any update, it is the only fit,
    ``standing_still``, without hyperparameters. ``responses``: those of the optimizer itself, with
    its ``schedule``, if it follows one, at its peak: the learning rates are those at the peak.
    """

    fits: tuple[Fit, ...]
    nearest: Fit
    responses: Responses
    schedule: Schedule | None = None

    def verdict(self) -> list[str]:
        """Which optimizer it is, and how sure that is."""
        return words.identity_in_words(self)

    @property
    def name(self) -> str:
        """The nearest optimizer, and whether a schedule is on top."""
        period = self.responses.period
        cycles = f" in cycles of {period} steps" if period > 1 else ""
        schedule = " with a schedule" if self.schedule is not None else ""
        return self.nearest.name + schedule + cycles

    @property
    def exact(self) -> bool:
        """Whether the nearest optimizer behaves the same in every probe."""
        return self.nearest.residual <= EXACT


def identify(
    tx: Optimizer | StepMap,
    *,
    gradient_scale: float = 1.0,
    steps: int = 100,
    h: Float[np.ndarray, " N"] | None = None,
    candidates: Collection[str] = tuple(CANDIDATES),
    **place: Unpack[Place],
) -> Identification:
    """The hand-designed optimizer nearest ``tx``, by impulse response, saturation and adaptation.

    Each candidate is fitted by least squares to the `responses` of one component over six
    decades of gradients about ``gradient_scale``, every probe weighted alike: from
    a grid of starts, the learning rates solved for exactly, then Levenberg–Marquardt over
    all hyperparameters; for Lion, whose response jumps, from `reversal_threshold`. Nothing is
    random. ``h`` [N]: the optimizer's memory before each probe, such as the fixed point of
    a learned one, whose first steps are otherwise a transient; by default the initial
    one, with counters at 0, whatever the ``state`` given (its rates and masks count).
    Candidates always start from theirs. A schedule is divided out: its counters stay
    where it is at its peak, while bias corrections run. Which component: see `Place`; gradients
    of others are 0. Where one factor couples components at large gradients, as a clip by norm
    does, only smaller ones are given.

    ``place``: which component of which training, see `Place`.

    >>> import optax
    >>> found = identify(optax.sgd(0.5, momentum=0.75), candidates=["momentum", "nesterov"])
    >>> found.nearest.name, round(found.nearest.hyperparameters["beta"], 8)
    ('momentum', 0.75)

    Raises `UserError` for an optimizer that is not component-wise, one whose responses are
    even in the gradient or not finite, and an unknown candidate.
    """
    if not candidates:
        raise UserError("candidates: none given (at least one)")
    for name in candidates:
        require_choice("candidates", name, list(CANDIDATES))
    step = _anew(step_map(tx, **place))
    gradient_scale = finite_number("gradient_scale", gradient_scale)
    require_number("gradient_scale", gradient_scale)
    schedule = counting(step, min(gradient_scale, step.silent_up_to)).schedule
    frozen: tuple[int, ...] = ()
    if schedule is not None:
        frozen = schedule.counters
        step = step.at_count(schedule.peak, frozen)
    most = unfelt_by_others(step, gradient_scale)
    gradient_scale = min(gradient_scale, most / LARGEST_PROBE)
    seen = responses(step, gradient_scale=gradient_scale, steps=steps, h=h, frozen=frozen)
    if seen.still:
        fit = Fit(STANDING_STILL, {}, 0.0, seen.updates)
        return Identification(fits=(fit,), nearest=fit, responses=seen)
    norms = np.linalg.norm(seen.updates, axis=1)
    if not np.all(np.isfinite(norms)) or np.max(norms) == 0.0:
        raise UserError(
            "optimizer: some updates to test gradients are not finite, or none changes sign with "
            "the gradient (allowed: optimizers whose updates do)"
        )
    # Every probe counts alike, whatever its amplitude.
    weights = 1.0 / (_sizes(norms, seen.amplitudes) * np.sqrt(len(norms)))
    fits = [_fit(CANDIDATES[name], step, seen, weights[:, None]) for name in candidates]
    fits.sort(key=lambda fit: fit.residual)
    limit = max(EXACT, COMPARABLE * fits[0].residual)
    alike = [fit for fit in fits if fit.residual <= limit]
    nearest = min(alike, key=lambda fit: (CANDIDATES[fit.name].size, fit.residual))
    return Identification(fits=tuple(fits), nearest=nearest, responses=seen, schedule=schedule)


def _anew(step: StepMap) -> StepMap:
    """The same component at the begin of a training, gradients of others 0."""
    with double_precision():
        state = step.fresh_state(step.around.params)
        gradients = jax.tree.map(jnp.zeros_like, step.around.gradients)
    fresh = dataclasses.replace(step, state=state).among(step.around.params, gradients)
    return fresh if step.clock.countdowns else fresh.at_count(0)


def _sizes(
    norms: Float[np.ndarray, " P"], amplitudes: Float[np.ndarray, " P"]
) -> Float[np.ndarray, " P"]:
    """What a difference in each probe is measured by: the norm of the response, if there is one."""
    alike = amplitudes[:, None] == amplitudes[None, :]
    largest = np.max(np.where(alike, norms[None, :], 0.0), axis=1)
    largest = np.where(largest > 0.0, largest, np.max(norms))
    sizes = np.where(norms > NEGLIGIBLE * largest, norms, largest)
    return np.maximum(sizes, NEGLIGIBLE * np.max(norms))


def _fit(candidate: Candidate, step: StepMap, seen: Responses, weights: Weights) -> Fit:
    target = (weights * seen.updates).ravel()
    model = _Model(candidate, seen.gradients, weights)
    tried = []
    for start in candidate.starts(step, seen):
        shape = [t.inverse(v) for t, v in zip(candidate.shape.values(), start, strict=True)]
        tried.append(_with_best_rates(model, np.array(shape), target))
    tried.sort(key=lambda pair: pair[0])
    best = tried[0]
    if candidate.smooth and candidate.shape:
        for _, first in tried[:REFINED]:
            for residual, point in _refined(model, first, target):
                allowed = candidate.allowed(_named(candidate, point), seen.gradient_scale)
                if allowed and residual < best[0]:
                    best = residual, point
            if best[0] < EXACT * 1e-6:
                break
    residual, point = best
    updates = model.value(point).reshape(seen.updates.shape) / weights
    return Fit(candidate.name, _named(candidate, point), residual, updates)


def _refined(model: _Model, start: Point, target: Target) -> Iterator[tuple[float, Point]]:
    """The residual and the point that Levenberg–Marquardt ends at.

    A second one where hyperparameters ran away to where they do nothing (an ε to 0): they
    start anew, now that the others are near.
    """
    for _ in range(2):
        found = scipy.optimize.least_squares(
            lambda p: model.value(p) - target,
            start,
            jac=model.jacobian,
            method="lm",
            ftol=1e-10,
            xtol=1e-12,
            max_nfev=MOST_EVALUATIONS,
        )
        yield float(np.sqrt(2 * found.cost)), found.x
        slopes = np.linalg.norm(model.jacobian(found.x), axis=0)
        idle = (slopes <= NEGLIGIBLE * np.max(slopes)) & (found.x != start)
        if not np.any(idle):
            return
        start = np.where(idle, start, found.x)


def _with_best_rates(
    model: _Model, shape: Float[np.ndarray, " S"], target: Target
) -> tuple[float, Point]:
    """The residual and the point with the learning rates that suit ``shape`` best."""
    count = len(model.candidate.rates)
    columns = model.jacobian(np.concatenate([np.ones(count), shape]))[:, :count]
    rates = np.linalg.lstsq(columns, target)[0]
    return float(np.linalg.norm(columns @ rates - target)), np.concatenate([rates, shape])


class _Model:
    """A candidate's weighted responses as a function of its learning rates and shape [n]."""

    def __init__(
        self, candidate: Candidate, gradients: Float[np.ndarray, "P T"], weights: Weights
    ) -> None:
        self.candidate, self.gradients, self.weights = candidate, gradients, weights
        self._last: tuple[bytes, np.ndarray, np.ndarray] | None = None

    def value(self, point: Point) -> Target:
        return self._at(point)[0]

    def jacobian(self, point: Point) -> Float[np.ndarray, "PT n"]:
        return self._at(point)[1]

    def _at(self, point: Point) -> tuple[np.ndarray, np.ndarray]:
        if self._last is None or self._last[0] != point.tobytes():
            with double_precision():
                updates, slopes = _compiled(self.candidate.name)(point, self.gradients)
            value = (self.weights * np.asarray(updates)).ravel()
            jacobian = np.asarray(slopes) * self.weights[:, :, None]
            # Where a second moment underflows, its square root has no slope.
            flat = np.nan_to_num(jacobian.reshape(value.size, point.size), posinf=0.0, neginf=0.0)
            self._last = (point.tobytes(), value, flat)
        return self._last[1:]


@functools.cache
def _compiled(name: str) -> Callable[..., tuple[Array, Array]]:
    candidate = CANDIDATES[name]

    def updates(point: Float[Array, " n"], gradients: Float[Array, "P T"]) -> Float[Array, "P T"]:
        return respond(candidate.factory(**_values(candidate, point)), gradients)

    def both(point: Array, gradients: Array) -> tuple[Array, Array]:
        return updates(point, gradients), jax.jacfwd(updates)(point, gradients)

    return jax.jit(both)


def _values(candidate: Candidate, point: Float[Array, " n"]) -> dict[str, Float[Array, ""]]:
    values = dict(zip([*candidate.rates, *candidate.shape], point, strict=True))
    return values | {name: t.forward(values[name]) for name, t in candidate.shape.items()}


def _named(candidate: Candidate, point: Point) -> dict[str, float]:
    with double_precision():
        values = {name: float(v) for name, v in _values(candidate, jnp.asarray(point)).items()}
    if candidate.name != "aggmo":
        return values
    modes: list[tuple[float, float]] = []
    for beta, alpha in sorted(
        ((values[f"beta{j}"], values[f"alpha{j}"]) for j in (1, 2, 3)), reverse=True
    ):
        # Opposite rates of near modes are no sum: it is their difference that acts.
        if modes and abs(modes[-1][0] - beta) < COINCIDENT and modes[-1][1] * alpha >= 0.0:
            modes[-1] = (modes[-1][0], modes[-1][1] + alpha)
        else:
            modes.append((beta, alpha))
    largest = max(abs(alpha) for _, alpha in modes)
    modes = [(beta, alpha) for beta, alpha in modes if abs(alpha) > NEGLIGIBLE * largest]
    modes += [(0.0, 0.0)] * (3 - len(modes))
    return {
        name: value
        for j, (beta, alpha) in enumerate(modes, start=1)
        for name, value in ((f"alpha{j}", alpha), (f"beta{j}", beta))
    }
