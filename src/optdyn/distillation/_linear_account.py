"""How far linear dynamics alone account for what a learned optimizer does."""

from __future__ import annotations

import dataclasses

import numpy as np
import optax
from jaxtyping import Float

from optdyn.dynamics import reduce
from optdyn.dynamics._operating_point import OperatingPoint
from optdyn.errors import UserError
from optdyn.inner_loop import ProblemSet
from optdyn.inner_loop._statistics import MeanAndError, mean_and_error
from optdyn.mechanisms._momentum_stage import deviation
from optdyn.meta_training._unroll_options import MetaOptimizer

STEPS = ("baseline", "linear at rest", "linear", "full")
"""The optimizers on the way from a baseline to the learned one.

``linear at rest``: linearised at the fixed point, all modes, and started there. ``linear``: the
same with the learned optimizer's initial state, so with its initial transient. ``full``: the
learned optimizer itself."""


@dataclasses.dataclass(frozen=True)
class Kept:
    """``fraction`` ± ``standard_error`` of an advantage over a baseline that is kept.

    1: all of it, 0: no better than the baseline. NaN where a run diverged or there
    is no advantage to keep.
    """

    fraction: float
    standard_error: float


def advantage_kept(
    candidate: Float[np.ndarray, " problems"],
    learned: Float[np.ndarray, " problems"],
    baseline: Float[np.ndarray, " problems"],
) -> Kept:
    """``mean(baseline − candidate)/mean(baseline − learned)`` of meta-objectives.

    On the same problems. Raises `UserError` for different numbers of problems.
    """
    return share_of_advantage(baseline, candidate, learned, baseline)


def share_of_advantage(
    before: Float[np.ndarray, " problems"],
    after: Float[np.ndarray, " problems"],
    learned: Float[np.ndarray, " problems"],
    baseline: Float[np.ndarray, " problems"],
) -> Kept:
    """``mean(before − after)/mean(baseline − learned)`` of meta-objectives.

    What the step from one optimizer to another wins of a learned one's advantage. On the
    same problems; the standard error is that of a ratio of means (delta method, paired).
    Raises `UserError` for different numbers of problems.
    """
    if not before.shape == after.shape == learned.shape == baseline.shape:
        raise UserError("advantage: the meta-objectives are not of the same problems")
    with np.errstate(invalid="ignore"):  # both may have diverged
        rows = np.stack([before - after, baseline - learned]).astype(np.float64)
    if not np.all(np.isfinite(rows)) or not np.mean(rows[1]) > 0:
        return Kept(float("nan"), float("nan"))
    won, whole = np.mean(rows, axis=1)
    fraction = won / whole
    if rows.shape[1] < 2:
        return Kept(float(fraction), float("inf"))
    spread = np.std(rows[0] - fraction * rows[1], ddof=1) / whole
    return Kept(float(fraction), float(spread / np.sqrt(rows.shape[1])))


@dataclasses.dataclass(frozen=True)
class LinearAccount:
    """The optimizers of `STEPS` on the same problems.

    ``scores``: each one's meta-objective; ``diverged``: on how many problems it is not
    finite. ``ratio``: the meta-objective of ``linear`` over that of ``full``; ``deviation``:
    the median over steps 1 … T of the relative difference of their mean loss curves.
    The learned optimizer's advantage over the baseline is split where those steps are:
    ``linear_dynamics`` is won from ``baseline`` to ``linear at rest``, ``initial_transient``
    from there to ``linear``, ``nonlinearity`` from there to ``full``. The three fractions add
    up to 1; one is negative where its step loses. NaN where an optimizer diverged or there is
    no advantage.
    """

    scores: dict[str, MeanAndError[float]]
    diverged: dict[str, int]
    ratio: float
    deviation: float
    linear_dynamics: Kept
    initial_transient: Kept
    nonlinearity: Kept


def linear_account(
    problems: ProblemSet,
    optimizer: MetaOptimizer,
    point: OperatingPoint,
    baseline: optax.GradientTransformation,
) -> LinearAccount:
    """Run the optimizers of `STEPS`; ``point`` is where ``optimizer`` is linearised."""
    optimizers = (
        baseline,
        reduce(point.modes),
        reduce(point.modes, h0=point.h0),
        optimizer.as_optax(),
    )
    losses = {
        name: problems.curves(lambda tx=tx: tx)()
        for name, tx in zip(STEPS, optimizers, strict=True)
    }
    each = {name: problems.scores(curves) for name, curves in losses.items()}
    scores = {name: mean_and_error(values) for name, values in each.items()}
    with np.errstate(invalid="ignore"):
        ratio = scores["linear"].mean / scores["full"].mean
    linear, full = (problems.mean_curve(losses[name]).mean for name in ("linear", "full"))
    return LinearAccount(
        scores=scores,
        diverged={name: int(np.sum(~np.isfinite(values))) for name, values in each.items()},
        ratio=float(ratio),
        deviation=deviation(full, linear),
        linear_dynamics=_step(each, "baseline", "linear at rest"),
        initial_transient=_step(each, "linear at rest", "linear"),
        nonlinearity=_step(each, "linear", "full"),
    )


def _step(each: dict[str, Float[np.ndarray, " problems"]], before: str, after: str) -> Kept:
    return share_of_advantage(each[before], each[after], each["full"], each["baseline"])
