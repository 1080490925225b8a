"""One optimizer taken apart: operating point, modes, stability, nearest relative."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

from optdyn.dynamics import _words as words
from optdyn.dynamics._eigenmodes import Eigenmodes, eigenmodes, impulse_mismatch
from optdyn.dynamics._identification import Identification, identify
from optdyn.dynamics._linearization import Linearization, linearize
from optdyn.dynamics._operating_point import operating_point, settle, settle_from_start
from optdyn.dynamics._place import Place
from optdyn.dynamics._schedules import LONG, Counting, Schedule, at_counts, counting
from optdyn.dynamics._separability import NotComponentwise
from optdyn.dynamics._step_map import Optimizer, StepMap, step_map
from optdyn.dynamics._theory import StabilityMap, stability_map, steady_rate
from optdyn.errors import UserError, finite_number, require_number
from optdyn.in_words import InWords
from optdyn.precision import double_precision

# A state that a long history of zero-mean gradients leaves this near to where it was is at rest.
AT_REST = 1e-6


@dataclasses.dataclass(frozen=True)
class Dissection(InWords):
    """What was found about an optimizer.

    ``where`` says in words which operating point ``modes`` are of. ``mismatch``: how far
    the summed modes are from the linear system's impulse response, relatively.
    ``identification`` is from the fixed point where gradient histories led to one, else from
    the initial state. ``schedule``: how the rate follows the step count, if it does;
    ``part_of_peak``: the rate at the operating point, as part of the schedule's peak.
    ``decay_schedule``: how the weight decay follows the step count, where the rate does not
    explain it. Phases of a schedule that are shorter than the steps between the counts that were
    looked at (``schedule.counts``: at most 0.63 % of the count for small trees) may be missed.
    ``gradient_scale``: the size of the gradients that it was taken apart at: the one asked for,
    or a smaller one where a clip by norm may act on those.
    """

    where: str
    modes: Eigenmodes
    mismatch: float
    stability: StabilityMap
    identification: Identification
    schedule: Schedule | None = None
    part_of_peak: float = 1.0
    decay_schedule: Schedule | None = None
    gradient_scale: float = 1.0

    def verdict(self) -> list[str]:
        """What it is like, where that was seen, at what rate, and up to where it is stable."""
        lines = [self.identification.verdict()[0], f"linearised at {self.where}"]
        lines += words.point_in_words(self.linearization)[1:]
        if self.schedule is not None:
            lines = [line for line in lines if line != words.VARIES]
            lines.append(self.schedule_in_words + " (give a count to see another step)")
        if self.decay_schedule is not None:
            lines.append(self.decay_in_words)
        return [*lines, *self.modes.verdict(), *words.rest_in_words(self.linearization)]

    @property
    def rate(self) -> float:
        """The learning rate at the operating point: the update that a unit gradient leads to.

        0 where no small change of the gradient changes an update.
        """
        if not self.responds:
            return 0.0
        return steady_rate(self.linearization) / self.linearization.period

    @property
    def schedule_in_words(self) -> str:
        """Start, peak and end of the schedule, and where in it this is; "" for none."""
        if self.schedule is None:
            return ""
        part = self.part_of_peak
        here = "at its peak" if part > 1.0 - 1e-9 else f"at {part:.3g} of its peak" if part else "0"
        if part == 0.0 or not self.responds:
            return f"{self.schedule.words()} (in parts of the peak); here it is {here}"
        return f"{self.schedule.words(self.rate / part)}; here it is {here}"

    @property
    def decay_in_words(self) -> str:
        """Start, peak and end of the weight decay; "" where it has no schedule of its own."""
        if self.decay_schedule is None:
            return ""
        return self.decay_schedule.words(self.decay_schedule.height, "weight decay")

    @property
    def linearization(self) -> Linearization:
        """The linear system at the operating point."""
        return self.modes.linearization

    @property
    def responds(self) -> bool:
        """Whether a small change of the gradient changes any update (a sign's does not)."""
        return self.linearization.D != 0.0 or bool(np.any(self.modes.gain > 0.0))

    def summary(self) -> dict[str, Any]:
        """The numbers, without the curves, in a form that JSON can hold."""
        lin, modes, found = self.linearization, self.modes, self.identification
        columns = (modes.beta, modes.alpha, modes.delayed, modes.lag, modes.timescale, modes.gain)
        curves = ("curvature", "radius", "spectrum")
        return {
            "operating_point": self.where,
            "gradient_scale": self.gradient_scale,
            "state": list(lin.names),
            "modes": [
                {
                    "beta": [beta.real, beta.imag],
                    "alpha": [alpha.real, alpha.imag],
                    "delayed": [delayed.real, delayed.imag],
                    "lag": int(lag),
                    "timescale": timescale,
                    "gain": gain,
                }
                for beta, alpha, delayed, lag, timescale, gain in zip(*columns, strict=True)
            ],
            "feedthrough": modes.feedthrough,
            "weight_decay": -lin.weight_decay,
            "drift": lin.drift,
            "residual": lin.residual_norm,
            "condition_number": modes.condition_number,
            "degenerate": modes.degenerate,
            "impulse_mismatch": self.mismatch,
            "period": lin.period,
            "held": lin.held,
            "schedule": self.schedule_in_words,
            "decay_schedule": self.decay_in_words,
            "stability": {k: v for k, v in vars(self.stability).items() if k not in curves},
            "identification": {
                "nearest": found.nearest.name,
                "scheduled": found.schedule is not None,
                "exact": found.exact,
                "fits": [
                    {
                        "name": fit.name,
                        "residual": fit.residual,
                        "hyperparameters": fit.hyperparameters,
                    }
                    for fit in found.fits
                ],
            },
        }


def dissect(
    optimizer: Optimizer | StepMap,
    *,
    gradient_scale: float = 1.0,
    gradients: Float[np.ndarray, "components steps"] | None = None,
    spectrum: Float[np.ndarray, " S"] | None = None,
    **place: Unpack[Place],
) -> Dissection:
    """Linearise an optimizer where that makes sense, and say what it is.

    ``gradient_scale``: the size of the gradients it meets. ``gradients``: histories from a task;
    then the operating point is the fixed point at zero gradient that they lead towards, as at
    convergence. ``spectrum``: the task's curvatures. ``place``: which component, see
    `Place`; of a ``state`` given, and at a ``gradient`` given, that is the operating point.
    Without a ``count`` a schedule is looked at where it is at its peak, and bias corrections
    long after they died out. With one, the memory too is that of so many steps (see
    `natural_linearization`); what it is (`identify`) does not depend on the count.

    Raises `UserError` for an optimizer that is not component-wise, or has a derivative at
    none of the operating points tried.
    """
    gradient_scale = finite_number("gradient_scale", gradient_scale)
    require_number("gradient_scale", gradient_scale)
    step = step_map(optimizer, **place)
    gradient_scale = min(gradient_scale, step.silent_up_to)
    found = counting(step, gradient_scale)
    given = place.get("state") is not None
    here = given or place.get("count") is not None
    if given:
        lin, where = linearize(step), "the given state, at the given gradient" + _at(step)
    else:
        lin, where = natural_linearization(
            step,
            gradient_scale=gradient_scale,
            count=place.get("count"),
            gradients=gradients,
            found=found,
        )
    modes = eigenmodes(lin)
    converged = gradients is not None and _at_rest(lin)
    return Dissection(
        where=where,
        modes=modes,
        mismatch=impulse_mismatch(lin, modes),
        stability=stability_map(lin, spectrum=spectrum),
        identification=identify(
            step, gradient_scale=gradient_scale, h=lin.state if converged else None
        ),
        schedule=found.schedule,
        decay_schedule=found.decay,
        part_of_peak=found.schedule.part_at(step) if here and found.schedule else 1.0,
        gradient_scale=gradient_scale,
    )


def _at(step: StepMap) -> str:
    """Where the counters of ``step`` stand, in words."""
    counts = sorted(set(step.counts.values()))
    return f", counters at {', '.join(map(str, counts))}" if counts else ""


def _at_rest(lin: Linearization) -> bool:
    size = 1.0 + float(np.linalg.norm(lin.state))
    return lin.gradient == 0.0 and lin.residual_norm <= AT_REST * size


def natural_linearization(
    step: StepMap,
    *,
    gradient_scale: float,
    count: int | None = None,
    gradients: Float[np.ndarray, "components steps"] | None = None,
    found: Counting | None = None,
) -> tuple[Linearization, str]:
    """Linearise at the first of these that applies and is smooth; and its name in words.

    1. with ``gradients``: the fixed point at zero gradient;
    2. the initial state, when a long history of gradients ±s leads back to it;
    3. the stationary state of gradients ±s (`settle`), where second moments are s²;
    4. the same under the constant gradient s, at that gradient (for signs).

    With a ``count`` these are the states after so many gradients (after the last 20 000 where it
    is larger), counters at ``count``: moments and their bias corrections are of one step.
    Otherwise counters of a schedule stand at its peak, those of a bias correction where it has
    died out (``found``: see `counting`), and all others where the history leads them. The words
    say where counters stand that are not at their start.

    Raises `UserError` when none is smooth, with what is wrong at the last; with how components
    are coupled, where they are.
    """
    s = gradient_scale
    if gradients is not None:
        with contextlib.suppress(UserError):  # a kink at zero gradient, or no fixed point
            lin = operating_point(step, gradients).modes.linearization
            return lin, "the fixed point at zero gradient that the task's gradients lead to"
    if found is None:
        found = counting(step, s)
    noisy, pushed = _histories(step, s, count)
    settled, driven = (_placed(step, state, found, count) for state in (noisy, pushed))
    there = _counters_in_words(step, found, count)
    start = "the initial state, at zero gradient"
    if not np.all(np.isfinite(settled.h)):  # it grows without bound
        return linearize(step, count=count), start + there
    alternating, constant = _histories_in_words(s, count)
    point, h, where = settled, settled.h, alternating + there
    # Memory is in units of the gradient, or of its square.
    if np.all(np.abs(settled.h - step.h) <= AT_REST * min(s, s * s)):
        # Flags such as "is this the first step" have settled; all else starts anew.
        point, h = _placed(step, _with_flags_of(noisy, step.state), found, count), step.h
        moved = count is not None or found.transient or found.schedule or found.decay
        where = start + there if moved else start
    try:
        return linearize(_among_others(point, s, own=0.0), h=h), where
    except UserError as error:
        first = error
    try:
        return linearize(_among_others(driven, s, own=s), h=driven.h), constant + there
    except UserError as error:
        # Where components are coupled, no other gradient is a remedy.
        raise first if isinstance(first, NotComponentwise) else error from None


def _among_others(step: StepMap, s: float, *, own: float) -> StepMap:
    """At the gradient ``own``; in a training that has no gradients yet, those of others are s.

    Then a clip by the norm of all acts as it did on the way to this state: where ``own`` is 0,
    the others make up for it.
    """
    with double_precision():
        gradients = step.around.gradients
        n = sum(map(np.size, jax.tree.leaves(gradients)))
        if step.alone:
            size = own
        elif own == 0.0 and n > 1:
            size = s * math.sqrt(n / (n - 1))
        else:
            size = s
        if step.alone or not optax.tree.norm(gradients):
            gradients = jax.tree.map(lambda g: jnp.full_like(g, size), gradients)
        return step.among(step.around.params, step.around.put(gradients, own))


def _histories(step: StepMap, s: float, count: int | None) -> tuple[PyTree, PyTree]:
    """The states that gradients ±s, and a constant gradient s, lead to."""
    if count is None:
        noisy, pushed = (settle(step, s, alternating=a, steps=LONG) for a in (True, False))
        return noisy, pushed
    steps = min(count, LONG)
    return settle_from_start(step.at_count(count - steps), s, steps)


def _histories_in_words(s: float, count: int | None) -> tuple[str, str]:
    if count is None:
        return (
            f"the stationary state of gradients ±{s:.4g}, at zero gradient",
            f"the stationary state of a constant gradient {s:.4g}, at it",
        )
    steps = min(count, LONG)
    return (
        f"the state after {steps} gradients ±{s:.4g}, at zero gradient",
        f"the state after {steps} steps of a constant gradient {s:.4g}, at it",
    )


def _placed(step: StepMap, state: PyTree, found: Counting, count: int | None) -> StepMap:
    moved = dataclasses.replace(step, state=state)
    return at_counts(moved, found) if count is None else moved.at_count(count)


def _with_flags_of(settled: PyTree, start: PyTree) -> PyTree:
    """``start``, but with the flags of ``settled``."""

    def chosen(old: Array, new: Array) -> Array:
        return new if old.dtype == np.bool_ else old

    return jax.tree.map(chosen, start, settled)


def _counters_in_words(step: StepMap, found: Counting, count: int | None) -> str:
    if count is not None:
        return f", counters at {count}"
    schedules = {"schedule": found.schedule, "weight decay": found.decay}
    moving = {name: one for name, one in schedules.items() if one is not None}
    scheduled = {i for one in moving.values() for i in one.counters}
    others = f", counters at {LONG}" if set(step.clock.counters) - scheduled else ""
    return others + "".join(
        f", the {name} at its peak (count {one.peak})" for name, one in moving.items()
    )
