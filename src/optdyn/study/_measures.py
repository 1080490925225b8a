"""What each row of the table of claims measures: a task's results in, one number out.

A number that could not be had is NaN; what diverged is infinite.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import TypeVar

import numpy as np

from optdyn.distillation._chain import READABLE
from optdyn.inner_loop import MeanAndError
from optdyn.mechanisms._measured import Mechanisms
from optdyn.runs._distillation_run import DistillationResult, Judged
from optdyn.runs._evaluation_run import LEARNED, Score
from optdyn.runs._results import AnalysisResult, CheckpointRow
from optdyn.runs._stage_run import StageSearchRow
from optdyn.search import best
from optdyn.study._ledger import Bound, Measured
from optdyn.study._results import TaskResults

T = TypeVar("T")
Measure = Callable[[TaskResults, str], Measured]
Spread = Callable[[TaskResults, str, Bound], str]
AT_THE_STAGE = 0.05
"""How near tuned momentum's meta-objective a checkpoint must be to be its stage."""
FITS_SHIPPED = "fitted numbers shipped with the package, judged in this run"
PARTS_FOR = {
    "no schedule": ("schedule", {"schedule"}),
    "linear": ("nonlinearity", {"adaptive", "saturation", "forgetting"}),
}
"""What an ablation of the learned optimizer takes away, and the parts that stand for it."""


def there(part: T | None) -> T:
    """A part of the results that the caller knows to be there."""
    assert part is not None
    return part


def text(value: float) -> str:
    """A number to three digits."""
    return f"{value:.3g}" if math.isfinite(value) else "not finite"


def plus_minus(score: MeanAndError[float]) -> str:
    """A mean with its standard error."""
    if not math.isfinite(score.mean):
        return "diverged"
    error = score.standard_error
    return f"{score.mean:.4g} ± {f'{error:.2g}' if math.isfinite(error) else 'unknown'}"


# Fig. 9.


def lower_by(results: TaskResults, baseline: str) -> Measured:
    """How many standard errors the learned optimizer is below a baseline on the same problems."""
    learned, other, difference, note = _compared(results, baseline)
    if not math.isfinite(learned.mean):
        return Measured(-math.inf, note)
    if not math.isfinite(other.mean):
        return Measured(math.inf, note)
    error = difference.standard_error
    return Measured(-difference.mean / error if error else math.nan, note, 1.0)


def advantage(results: TaskResults, baseline: str) -> Measured:
    """How far the learned optimizer's meta-objective is below a baseline's, relatively."""
    learned, other, difference, note = _compared(results, baseline)
    return Measured(1.0 - learned.mean / other.mean, note, difference.standard_error / other.mean)


def _compared(results: TaskResults, baseline: str) -> tuple[Score, Score, MeanAndError[float], str]:
    """The learned optimizer's score, a baseline's, their paired difference, and all in words."""
    summary = there(results.summary)
    learned, other = (summary.optimizers[name] for name in (LEARNED, baseline))
    difference = summary.learned_minus[baseline]
    note = (
        f"learned {plus_minus(learned)}, {baseline} {plus_minus(other)}; paired difference "
        f"{plus_minus(difference)}"
    )
    return learned, other, difference, note


# Appendix A.


def distance_to_momentum(analysis: AnalysisResult) -> float:
    """Relative difference of the stage's meta-objective and tuned momentum's."""
    return abs(analysis.stage.meta_objective / analysis.judged.tuned.meta_objective - 1.0)


def stage_name(analysis: AnalysisResult) -> str:
    """What to call the checkpoint that is judged as the momentum stage, and which it is."""
    off = distance_to_momentum(analysis)
    nearest = f"nearest checkpoint ({100 * off:.0f} % off)"
    what = "momentum stage" if off <= AT_THE_STAGE else nearest
    other = analysis.judged.training
    return f"meta-step {analysis.stage.meta_step:,}, {what}" + (f" ({other})" if other else "")


def off_momentum(results: TaskResults, _: str) -> Measured:
    """How far the stage's meta-objective is from tuned momentum's, relatively."""
    analysis = there(results.analysis)
    return Measured(distance_to_momentum(analysis), stage_name(analysis))


def distance_to_fixed_point(results: TaskResults, _: str) -> Measured:
    """Estimated distance to the fixed point that the stage was linearised at."""
    analysis = there(results.analysis)
    point = analysis.stage.fixed_point
    return Measured(
        point.error_estimate,
        f"{stage_name(analysis)}; {point.converged} of {point.candidates} starts converged, to "
        f"{point.distinct} distinct point(s)",
    )


def strain_of_mode(results: TaskResults, _: str) -> Measured:
    """The largest difference of the leading mode from tuned momentum, over what is allowed."""
    analysis = there(results.analysis)
    strain = {n: analysis.judged.strain[n] for n in ("alpha", "beta", "timescale")}
    told = ", ".join(f"{name} {value:.2f}" for name, value in strain.items())
    return Measured(max(strain.values()), f"{stage_name(analysis)}; {told}")


def linear_deviation(results: TaskResults, _: str) -> Measured:
    """How far the linearised optimizer's loss curve is from the full one's, at the stage."""
    analysis = there(results.analysis)
    return Measured(
        analysis.linear["stage"].deviation,
        f"{stage_name(analysis)}; {_parts_of_advantage(analysis, 'stage')}",
    )


def nonlinear_share(results: TaskResults, _: str) -> Measured:
    """The fraction of the final advantage over tuned momentum that is not linear."""
    analysis = there(results.analysis)
    share = analysis.linear["final"].nonlinearity if "final" in analysis.linear else None
    if share is None:
        return Measured(math.nan, "the final checkpoint has no fixed point to linearise at")
    note = f"meta-step {analysis.final:,}; {_parts_of_advantage(analysis, 'final')}"
    return Measured(share.fraction, note, share.standard_error)


def _parts_of_advantage(analysis: AnalysisResult, at: str) -> str:
    """The meta-objectives on the way from tuned momentum to the learned optimizer."""
    scores = analysis.linear[at].scores
    return "; ".join(f"{name} {plus_minus(score)}" for name, score in scores.items())


def at_stage(number: Callable[[CheckpointRow], float]) -> Measure:
    """A number of the momentum stage, noted beside its leading mode and tuned momentum."""

    def measure(results: TaskResults, _: str) -> Measured:
        analysis = there(results.analysis)
        row, tuned = analysis.stage, analysis.tuned
        return Measured(
            number(row),
            f"{stage_name(analysis)}; leading mode: learning rate {row.alpha:.4g}, momentum "
            f"{row.beta:.4g}; tuned: {tuned.alpha:.4g}, {tuned.beta:.4g}",
        )

    return measure


# Mechanisms.


def largest_part(results: TaskResults, subject: str) -> Measured:
    """The part of the linear update that is left at a problem's largest gradient."""
    found = there(results.mechanisms).mechanisms
    part = over_problems(lambda measured: measured.update.largest_part)(results, subject)
    limits = f"clip threshold {text(found.update.threshold_start)}, largest gradient"
    note = f"{part.note}; {limits} {text(found.density.quantiles[-1])}"
    return dataclasses.replace(part, note=note)


def over_problems(number: Callable[[Mechanisms], MeanAndError[float]]) -> Measure:
    """A number that was measured on several problems, with its standard error."""

    def measure(results: TaskResults, _: str) -> Measured:
        mechanisms = there(results.mechanisms)
        found = number(mechanisms.mechanisms)
        note = f"meta-step {mechanisms.meta_step}; {plus_minus(found)} over problems"
        return Measured(found.mean, note, found.standard_error)

    return measure


def warm_up(results: TaskResults, _: str) -> Measured:
    """The largest learning rate without gradients over the first."""
    rate, largest, note = _rates(results)
    return Measured(largest / rate[0] if rate[0] > 0 else math.nan, note)


def decay(results: TaskResults, _: str) -> Measured:
    """The last learning rate without gradients over the largest."""
    rate, largest, note = _rates(results)
    return Measured(rate[-1] / largest if largest else math.nan, note)


def _rates(results: TaskResults) -> tuple[np.ndarray, float, str]:
    """The learning rates without gradients, the largest of them, and all in words."""
    mechanisms = there(results.mechanisms)
    rate = mechanisms.mechanisms.schedule.rate
    finite = np.where(np.isfinite(rate), rate, np.nan)
    largest = float(np.nanmax(finite, initial=-math.inf))
    at = int(np.nanargmax(finite)) if math.isfinite(largest) else "none"
    note = (
        f"meta-step {mechanisms.meta_step}; first {text(finite[0])}, largest {text(largest)} "
        f"at step {at}, last {text(finite[-1])}"
    )
    return finite, largest, note


# Searches.


def on_an_edge(results: TaskResults, baseline: str) -> Measured:
    """How many of the best combination's hyperparameters lie on an edge of the grid."""
    edges = sorted(best(there(results.tables)[baseline]).edges)
    return Measured(len(edges), f"on an edge: {', '.join(edges)}" if edges else "")


def rerun_difference(results: TaskResults, baseline: str) -> Measured:
    """How many standard errors apart a search's best score is from the same run again.

    The standard error on the tuning problems follows from the one on the test problems.
    """
    scores = there(results.reruns).baselines[baseline]
    note = f"stored {scores.stored:.7g}, run again {scores.rerun:.7g}"
    if scores.rerun == scores.stored:
        return Measured(0.0, note)
    if not (results.tables and baseline in results.evaluations):
        return Measured(math.nan, f"{note}; the baseline has not been evaluated")
    judged = results.evaluations[baseline]
    fewer = len(judged.losses) / results.tables[baseline].settings.num_problems
    error = judged.standard_error * math.sqrt(fewer)
    return Measured(abs(scores.rerun - scores.stored) / error, f"{note}; ± {error:.2g}")


# Readable optimizers.


def advantage_kept(results: TaskResults, _: str) -> Measured:
    """The part of the learned optimizer's advantage that the chosen readable one keeps."""
    found = there(results.distillation)
    sizes = "; ".join(f"{row.name}: {_kept(row)}" for row in found.sizes)
    note = (
        f"{found.best.name}, {found.best.numbers} numbers, ± "
        f"{text(found.best.kept.standard_error)} over problems; baseline {found.baseline}; by "
        f"size: {sizes}; {_worth(found)}{f'; {FITS_SHIPPED}' if found.shipped else ''}"
    )
    return Measured(found.best.kept.fraction, note, found.best.kept.standard_error)


def _worth(found: DistillationResult) -> str:
    """What the parts and the learned optimizer's mechanisms are worth, and what is missing."""
    learned = found.learned_without
    words = []
    if found.without:
        part = min(found.without, key=lambda name: _fraction(found.without[name]))
        words.append(
            f"its part worth most is {READABLE[part]} (without it: {_kept(found.without[part])})"
        )
    lost = min(PARTS_FOR, key=lambda name: _fraction(learned[name]))
    words.append(
        f"the learned optimizer's mechanism worth most is its {PARTS_FOR[lost][0]} "
        f"(without it: {_kept(learned[lost])})"
    )
    kept = found.best.kept
    if not kept.fraction + kept.standard_error >= 1.0:
        words.append(f"missing: {_missing(found)}")
    return "; ".join(words)


def _missing(found: DistillationResult) -> str:
    """The mechanism that the learned optimizer gains by and the chosen readable one does not."""
    learned = found.learned_without
    gained = {n for n, row in found.without.items() if _fraction(row) < _fraction(found.best)}
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
    return fraction if math.isfinite(fraction) else -math.inf


def _kept(row: Judged) -> str:
    if math.isfinite(row.kept.fraction):
        return text(row.kept.fraction)
    return "the learned one is not ahead there" if math.isfinite(row.mean) else "diverged"


# How a number spreads over trainings that differ in the seed alone, in words.


def over_seeds(headline: str) -> Spread:
    """The spread of a headline number, whose name holds ``{}`` where the subject's stands."""

    def words(results: TaskResults, subject: str, bound: Bound) -> str:
        name, rows = headline.format(subject), results.seeds.rows if results.seeds else []
        values = [row.numbers[name] for row in rows if name in row.numbers]
        known = [value for value in values if math.isfinite(value)]
        if not known:
            return ""
        met = sum(bound.met(value, results.task) for value in values)
        missing = len(values) - len(known)
        without = f", {missing} have no such number" if missing else ""
        deviation = float(np.std(known, ddof=1)) if len(known) > 1 else math.inf
        return (
            f"Over {len(values)} trainings: {np.mean(known):.3g} ± {deviation:.2g} "
            f"({min(known):.3g} to {max(known):.3g}); {met} reach the bound{without}."
        )

    return words


def over_stage_trainings(what: str) -> Spread:
    """In how many trainings for the momentum stage a checkpoint does ``what``.

    ``what``: "near" (performs like tuned momentum) or "met" (meets every threshold). Of the
    trainings looked through, those count that differ from the best one in the seed alone.
    """
    does = {"near": "performs like tuned momentum", "met": "meets every threshold of Fig. 7"}[what]

    def words(results: TaskResults, _: str, __: Bound) -> str:
        if results.stage_search is None:
            return ""
        rows = results.stage_search.rows
        best = min(rows, key=lambda row: row.strain)
        same = [row for row in rows if _choices(row) == _choices(best)]
        count = sum(getattr(row, what) > 0 for row in same)
        return (
            f"Over {len(same)} trainings with other seeds, {count} have a checkpoint that {does}."
        )

    return words


def _choices(row: StageSearchRow) -> tuple[float, float, int | None]:
    return row.gain, row.learning_rate, row.average_over
