"""Linear systems, modes and what they lead to, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from optdyn.dynamics._eigenmodes import Eigenmodes
    from optdyn.dynamics._identification import Identification
    from optdyn.dynamics._linearization import Linearization
    from optdyn.dynamics._theory import StabilityMap

SHOWN = 4
LEAST_GAIN = 1e-4
"""Modes below this part of the largest gain are counted, not listed."""
ROUNDING = 1e-12
VARIES = "the step depends on the step count (give a count to see another step)"


def point_in_words(lin: Linearization) -> list[str]:
    """Where it is linearised, and what of a step is not alike at every step."""
    count = "" if lin.count is None else f", counters at {lin.count}"
    lines = [f"linearised at gradient {lin.gradient:.4g}, parameter {lin.param:.4g}{count}"]
    if lin.period > 1:
        lines.append(f"steps come in cycles of {lin.period}; rates and times are those a step")
    if lin.varies:
        lines.append(VARIES)
    if lin.held:
        lines.append(lin.held)
    return lines


def modes_in_words(modes: Eigenmodes, rate: float) -> list[str]:
    """What memory there is, at what rates, and what oscillates."""
    lin, period = modes.linearization, modes.linearization.period
    size = abs(lin.D) + np.max(np.abs(modes.alpha), initial=0.0)
    direct = modes.feedthrough if abs(modes.feedthrough) > ROUNDING * size else 0.0
    shown = _leading(modes)
    lines = [f"learning rate {rate:.4g} a step in all, {direct / period:.4g} of it without memory"]
    if not len(shown):
        return [*lines, "no memory that the gradient drives"]
    listed = ", ".join(_mode(modes, int(j)) for j in shown[:SHOWN])
    more = len(shown) - SHOWN
    lines.append(f"modes: {listed}" + (f", and {more} more" if more > 0 else ""))
    turning = [int(j) for j in shown if _oscillates(modes.beta[j])]
    if turning:
        periods = sorted({_steps_a_turn(modes.beta[j]) * period for j in turning})
        text = ", ".join(f"{p:.3g}" for p in periods[:SHOWN])
        lines.append(f"oscillating by itself with a period of {text} steps")
    if modes.degenerate:
        lines.append("modes coincide: single ones mean nothing, their sum does")
    return lines


def rest_in_words(lin: Linearization) -> list[str]:
    """Weight decay and drift, where there are any."""
    parts = []
    if lin.weight_decay:
        parts.append(f"weight decay {-lin.weight_decay / lin.period:.4g} a step")
    if abs(lin.drift) > ROUNDING:
        parts.append(f"update at the operating point {lin.drift / lin.period:.4g} a step")
    return [", ".join(parts)] if parts else []


def edge_in_words(edge: float) -> str:
    """Up to which curvature the optimizer is stable."""
    if edge == 0.0:
        return "stable at no curvature"
    return "stable at every curvature" if np.isinf(edge) else f"stable up to curvature {edge:.6g}"


def stability_in_words(found: StabilityMap) -> list[str]:
    """Where it is stable, and how fast, beside the best there is."""
    kind = "the task's curvatures" if found.range_given else "its best range"
    return [
        edge_in_words(found.edge),
        f"fastest at curvature {found.fastest_curvature:.4g}: "
        f"an error shrinks by {found.fastest_radius:.4g} a step",
        f"on {kind} {found.low:.4g} to {found.high:.4g}: by {found.rate:.4g} a step at worst",
        f"the best there: {found.momentum_rate:.4g} (momentum), "
        f"{found.descent_rate:.4g} (gradient descent)",
    ]


def identity_in_words(found: Identification) -> list[str]:
    """Which optimizer it is, and how sure that is."""
    if found.responses.still:
        return [f"{found.name}: no gradient changes any update"]
    values = ", ".join(f"{k} {v:.4g}" for k, v in found.nearest.hyperparameters.items())
    told = (
        "the same in every probe"
        if found.exact
        else f"the nearest one, relative residual {found.nearest.residual:.2g}"
    )
    lines = [f"{found.name} ({values}): {told}"]
    if found.schedule is not None:
        lines.append(f"{found.schedule.words()} (in parts of the peak, at which the rates are)")
    others = [f"{f.name} {f.residual:.2g}" for f in found.fits if f.name != found.nearest.name]
    return [*lines, f"others' residuals: {', '.join(others[:SHOWN])}"] if others else lines


def _leading(modes: Eigenmodes) -> np.ndarray:
    gains = np.where(modes.used, modes.gain, 0.0)
    largest = np.max(gains, where=np.isfinite(gains), initial=0.0)
    return np.flatnonzero((gains > LEAST_GAIN * largest) & (modes.beta.imag >= 0.0))


def _mode(modes: Eigenmodes, j: int) -> str:
    period = modes.linearization.period
    beta, alpha = modes.beta[j], modes.alpha[j] + modes.delayed[j]
    if modes.delayed[j]:
        return f"rate {alpha.real:.4g} coming {modes.lag[j] * period} steps late"
    size = abs(beta) ** (1.0 / period)
    rate = alpha.real if abs(alpha.imag) <= ROUNDING * abs(alpha) else abs(alpha)
    return f"rate {rate / period:.4g} with momentum {size:.4g} ({modes.timescale[j]:.3g} steps)"


def _oscillates(beta: complex) -> bool:
    return bool(abs(beta) > ROUNDING and (beta.imag != 0.0 or beta.real < 0.0))


def _steps_a_turn(beta: complex) -> float:
    return float(2.0 * np.pi / abs(np.angle(beta)))
