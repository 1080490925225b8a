"""What the paper's main part says of the mechanisms, and what distillation keeps: the ledger."""

from __future__ import annotations

import math

import numpy as np

from optdyn.distillation._chain import READABLE
from optdyn.runs._explained_results import DistillationResult, Judged, MechanismsResult
from optdyn.study._claims import Claim, at_least, at_most

SOURCE = "main text"
LARGEST_PART = 0.5
WARM_UP = 1.1
DECAYED = 0.9
ADAPTED = 0.9
KEPT = {"linear_regression": 0.9}
KEPT_ELSEWHERE = 0.7
"""The part of the advantage over the best tuned baseline that a readable optimizer should keep."""

FITS_SHIPPED = "fitted numbers shipped with the package, judged in this run"
PARTS_FOR = {
    "no schedule": ("schedule", {"schedule"}),
    "linear": ("nonlinearity", {"adaptive", "saturation", "forgetting"}),
}
"""What an ablation of the learned optimizer takes away, and the parts that stand for it."""


def mechanism_claims(task: str, explained: MechanismsResult) -> list[Claim]:
    """Saturation, schedule and adaptation: whether each is there, as the paper states it."""
    measured = explained.mechanisms
    update, schedule, adapted = measured.update, measured.schedule, measured.adaptation
    rate = schedule.rate
    known = rate[np.isfinite(rate)]
    peak = float(np.max(known)) if known.size else math.nan
    start, end = float(rate[0]), float(rate[-1])
    rises = peak / start if start > 0 else math.nan
    falls = end / peak if peak else math.nan
    top = int(np.flatnonzero(rate == peak)[0]) if known.size else "none"
    where = f"checkpoint at meta-step {explained.meta_step}"
    threshold = _told(update.threshold_start, "beyond all gradients looked at")
    return [
        at_most(
            LARGEST_PART, update.largest_part.mean,
            id=f"{task}.update_saturates", task=task, source=SOURCE,
            statement="The update saturates as a function of the gradient (part of the linear "
            "update that is left at a problem's largest gradient, from the initial state).",
            note=f"{where}; ± {_told(update.largest_part.standard_error)} over problems; "
            f"clip threshold {threshold}, largest gradient "
            f"{_told(measured.density.quantiles[-1])}",
        ),
        at_least(
            WARM_UP, rises,
            id=f"{task}.schedule_warms_up", task=task, source=SOURCE,
            statement="With no gradient the learning rate first rises (largest over first).",
            note=f"{where}; first {_told(start)}, largest {_told(peak)} at step "
            f"{top}",
        ),
        at_most(
            DECAYED, falls,
            id=f"{task}.schedule_decays", task=task, source=SOURCE,
            statement="With no gradient the learning rate then falls (last over largest).",
            note=f"{where}; last {_told(end)}",
        ),
        at_most(
            ADAPTED, adapted.ratio.mean,
            id=f"{task}.rate_falls_with_gradient", task=task, source=SOURCE,
            statement="At the fixed points that constant gradients lead to, the effective learning "
            "rate −∂Δx/∂g at g = 0 falls as |g| grows (at the 95 % quantile of |g| over at the "
            "5 % quantile).",
            note=f"{where}; ± {_told(adapted.ratio.standard_error)} over problems; "
            "RMSProp and Adam: inversely with |g|",
        ),
        at_most(
            ADAPTED, adapted.slope_ratio.mean,
            id=f"{task}.slope_falls_with_gradient", task=task, source=SOURCE,
            statement="The same with the slope taken at the constant gradient itself, where "
            "saturation has a part in it.",
            note=f"{where}; ± {_told(adapted.slope_ratio.standard_error)} over problems",
        ),
    ]  # fmt: skip


def distillation_claims(task: str, distilled: DistillationResult) -> list[Claim]:
    """How much of the advantage the chosen readable optimizer keeps."""
    chosen = distilled.best
    bound = KEPT.get(task, KEPT_ELSEWHERE)
    sizes = "; ".join(f"{row.name}: {_kept(row)}" for row in distilled.sizes)
    where = f"; {FITS_SHIPPED}" if distilled.shipped else ""
    return [
        at_least(
            bound, chosen.kept.fraction,
            id=f"{task}.distilled_keeps_the_advantage", task=task,
            source="this project",
            statement="A readable optimizer keeps the learned one's advantage over the best tuned "
            "baseline on unseen problems (fraction kept).",
            note=f"{chosen.name}, {chosen.numbers} numbers, "
            f"± {_told(chosen.kept.standard_error)} over problems; baseline "
            f"{distilled.baseline}; by size: {sizes}; {_worth(distilled, bound)}{where}",
        )
    ]  # fmt: skip


def _worth(distilled: DistillationResult, bound: float) -> str:
    """What the parts and the learned optimizer's mechanisms are worth, and what is missing."""
    chosen, learned = distilled.best, distilled.learned_without
    words = []
    if distilled.without:
        part = min(distilled.without, key=lambda n: _fraction(distilled.without[n]))
        kept = _kept(distilled.without[part])
        words.append(f"its part worth most is {READABLE[part]} (without it: {kept})")
    lost = min(PARTS_FOR, key=lambda n: _fraction(learned[n]))
    words.append(
        f"the learned optimizer's mechanism worth most is its {PARTS_FOR[lost][0]} "
        f"(without it: {_kept(learned[lost])})"
    )
    if _fraction(chosen) < bound:
        words.append(f"missing: {_missing(distilled)}")
    return "; ".join(words)


def _missing(distilled: DistillationResult) -> str:
    """The mechanism that the learned optimizer gains by and the chosen readable one does not."""
    chosen, learned = distilled.best, distilled.learned_without
    gained = {part for part, row in distilled.without.items() if _fraction(row) < _fraction(chosen)}
    lacked = {
        name: 1.0 - _fraction(learned[name])
        for name, (_, parts) in PARTS_FOR.items()
        if not gained & parts and _fraction(learned[name]) < 1.0
    }
    if not lacked:
        return "memory or nonlinearity beyond the parts, each of whose mechanisms it gains by"
    name = max(lacked, key=lacked.__getitem__)
    mechanism, stand_for_it = PARTS_FOR[name]
    parts = " or ".join(READABLE[part] for part in READABLE if part in stand_for_it)
    return (
        f"{mechanism}, as it gains nothing by {parts} (without its {mechanism} the learned one "
        f"keeps: {_kept(learned[name])})"
    )


def _fraction(row: Judged) -> float:
    """The part kept, −∞ where there is no number."""
    fraction = row.kept.fraction
    return -math.inf if math.isnan(fraction) else fraction


def _kept(row: Judged) -> str:
    told = "the learned one is not ahead there" if math.isfinite(row.mean) else "diverged"
    return _told(row.kept.fraction, told)


def _told(value: float, missing: str = "not finite") -> str:
    return f"{value:.3g}" if math.isfinite(value) else missing
