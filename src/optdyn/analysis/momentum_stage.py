"""The stage of meta-training at which a learned optimizer is momentum (appendix A)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from optdyn.analysis.validation import Validation, mean_curve
from optdyn.dynamics import reduce

if TYPE_CHECKING:
    from jaxtyping import Float

    from optdyn.analysis.operating_point import OperatingPoint

MomentumCurves = "Callable[[float, float], Float[np.ndarray, 'problems steps']]"


@dataclasses.dataclass(frozen=True)
class TunedMomentum:
    """The best tuned momentum and its meta-objective on the validation problems."""

    alpha: float
    beta: float
    meta_objective: float


@dataclasses.dataclass(frozen=True)
class StageRow:
    """How like momentum one checkpoint is.

    ``alpha``, ``beta``: the leading mode's learning rate and momentum (real
    parts; ``oscillating`` says whether it is one of a complex pair).
    ``gain_gap``: its steady-state gain |α/(1−β)| over the next mode's.
    ``rate_ratio``: |α| over the median of the other modes'. ``momentum_ratio``:
    meta-objective of momentum run with (α, β), over tuned momentum's.
    ``deviation``: the median over steps 1 … T of the relative difference of the
    mean loss curves of the one-mode optimizer and the full one. NaN or inf
    where something diverged.
    """

    meta_step: int
    meta_objective: float
    alpha: float
    beta: float
    oscillating: bool
    gain_gap: float
    rate_ratio: float
    momentum_ratio: float
    deviation: float


def tuned_momentum(
    momentum_curves: Callable, validation: Validation, alpha: float, beta: float
) -> TunedMomentum:
    """Momentum with the hyperparameters tuning found, scored on the validation problems."""
    return TunedMomentum(alpha, beta, validation.meta_objective(momentum_curves(alpha, beta)))


def stage_row(
    meta_step: int,
    point: OperatingPoint,
    full: Float[np.ndarray, "problems steps"],
    tuned: TunedMomentum,
    momentum_curves: Callable,
    validation: Validation,
) -> StageRow:
    """Measure one checkpoint, whose losses on the validation problems are ``full``."""
    modes = point.modes
    alpha, beta = modes.alpha[0], modes.beta[0]
    pair = 2 if beta.imag != 0 else 1
    others = slice(pair, None)
    with np.errstate(divide="ignore", invalid="ignore"):
        next_gain = modes.gain[pair] if len(modes.gain) > pair else 0.0
        gap = float(np.divide(modes.gain[0], next_gain))
        bulk = float(np.median(np.abs(modes.alpha[others]))) if len(modes.gain) > pair else 0.0
        rate_ratio = float(np.divide(np.abs(alpha), bulk))
    extracted = validation.meta_objective(momentum_curves(alpha.real, beta.real))
    return StageRow(
        meta_step=meta_step,
        meta_objective=validation.meta_objective(full),
        alpha=float(alpha.real),
        beta=float(beta.real),
        oscillating=bool(beta.imag != 0),
        gain_gap=gap,
        rate_ratio=rate_ratio,
        momentum_ratio=extracted / tuned.meta_objective,
        deviation=deviation(full, one_mode_curves(point, validation), validation.normalization),
    )


def one_mode_curves(
    point: OperatingPoint, validation: Validation
) -> Float[np.ndarray, "problems steps"]:
    """Losses [problems, T + 1] of the optimizer made of the leading mode alone."""
    tx = reduce(point.modes, keep=[0], h0=point.h0)
    return validation.compiled(lambda: tx)()


def deviation(
    full: Float[np.ndarray, "problems steps"],
    reduced: Float[np.ndarray, "problems steps"],
    normalization: str,
) -> float:
    """Median over steps 1 … T of |reduced/full − 1|, of the mean loss curves."""
    whole, _ = mean_curve(full, normalization)
    part, _ = mean_curve(reduced, normalization)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        return float(np.median(np.abs(part[1:] / whole[1:] - 1.0)))


def nearest_to(level: float, meta_steps: Sequence[int], meta_objectives: Sequence[float]) -> int:
    """The rule that names the momentum stage, fixed in advance.

    The meta-step of the checkpoint whose meta-objective is nearest ``level``
    (relative difference; the earliest of equals).
    """
    gaps = np.abs(np.asarray(meta_objectives, float) / level - 1.0)
    return int(meta_steps[int(np.argmin(np.where(np.isfinite(gaps), gaps, np.inf)))])
