"""The claims ledger: each finding of the paper beside what was measured here."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from optdyn.evaluation import MeanAndError
from optdyn.runs._results import AnalysisResult, EvaluationSummary, Rerun, Score
from optdyn.runs._store import read_json


@dataclasses.dataclass(frozen=True)
class Claim:
    """A finding, the number that decides it, and the verdict.

    ``threshold`` states the comparison in words and numbers; ``passed`` is
    whether ``measured`` meets it. ``id`` is unique in a ledger. ``origin`` says
    where the weights and search tables behind it came from.
    """

    id: str
    task: str
    statement: str
    source: str
    measured: float | None
    threshold: str
    passed: bool
    note: str = ""
    origin: str = ""


def at_most(bound: float, measured: float | None, **claim: Any) -> Claim:
    """A claim that holds when ``measured`` ≤ ``bound``; a number that is missing fails."""
    passed = measured is not None and math.isfinite(measured) and measured <= bound
    return Claim(measured=measured, threshold=f"<= {bound:g}", passed=passed, **claim)


def at_least(bound: float, measured: float | None, **claim: Any) -> Claim:
    """A claim that holds when ``measured`` ≥ ``bound``; a number that is missing fails."""
    passed = measured is not None and not math.isnan(measured) and measured >= bound
    return Claim(measured=measured, threshold=f">= {bound:g}", passed=passed, **claim)


LEDGER = "claims.json"


def read_ledger(path: Path) -> list[dict[str, Any]]:
    """The claims in a ledger file; raises `UserError` when it is not a list of objects."""
    return read_json(path, list[dict[str, Any]])


THRESHOLDS = {"gain_gap": 3.0, "momentum_ratio": 1.10, "deviation": 0.05}
"""What the momentum stage is asked to show, by the names of `StageRow`."""


def momentum_claims(task: str, analysis: AnalysisResult) -> list[Claim]:
    """The findings of appendix A about the checkpoint that equals tuned momentum.

    The appendix reports them for linear regression; on other tasks the ledger
    tells whether they hold there too.
    """
    beyond = "" if task == "linear_regression" else "; found there on linear regression"
    step, row, tuned = analysis.momentum_stage, analysis.stage, analysis.tuned
    level = _ratio(row.meta_objective, tuned.meta_objective)
    where = f"checkpoint at meta-step {step}"
    mode = f"leading mode: learning rate {row.alpha:.4g}, momentum {row.beta:.4g}"
    return [
        at_most(
            0.05,
            None if level is None else abs(level - 1.0),
            id=f"{task}.momentum_stage",
            task=task,
            statement="Meta-training passes a stage at which the learned optimizer performs like "
            "the best tuned momentum (relative difference of meta-objectives).",
            source=f"appendix A{beyond}",
            note=f"{where}, the stored one nearest tuned momentum's meta-objective",
        ),
        at_most(
            1e-6,
            row.fixed_point.error_estimate,
            id=f"{task}.fixed_point",
            task=task,
            statement="The zero-gradient dynamics settle at a fixed point "
            "(estimated distance to it).",
            source="appendix B, eq. 3",
            note=f"{where}; {row.fixed_point.converged} of "
            f"{row.fixed_point.candidates} starts converged, to "
            f"{row.fixed_point.distinct} distinct point(s)",
        ),
        at_least(
            THRESHOLDS["gain_gap"],
            row.gain_gap,
            id=f"{task}.one_mode_stands_out",
            task=task,
            statement="One eigenmode stands out of the bulk (its steady-state gain |α/(1−β)| "
            "over the next mode's).",
            source=f"appendix A, Fig. 7a{beyond}",
            note=f"{where}; {mode}",
        ),
        at_least(
            3.0,
            row.rate_ratio,
            id=f"{task}.its_learning_rate_is_large",
            task=task,
            statement="That mode also has a large learning rate (over the median of the others).",
            source=f"appendix A, Fig. 7b{beyond}",
            note=f"{where}; {mode}",
        ),
        at_most(
            THRESHOLDS["momentum_ratio"],
            row.momentum_ratio,
            id=f"{task}.mode_matches_tuned_momentum",
            task=task,
            statement="Momentum run with that mode's learning rate and timescale does as well as "
            "the best tuned momentum (ratio of meta-objectives).",
            source=f"appendix A, Fig. 7b{beyond}",
            note=f"{mode}; tuned: {tuned.alpha:.4g}, {tuned.beta:.4g}",
        ),
        at_most(
            THRESHOLDS["deviation"],
            row.deviation,
            id=f"{task}.one_mode_follows_the_full_optimizer",
            task=task,
            statement="The optimizer reduced to that mode follows the full nonlinear one "
            "(median relative deviation of the loss over the unroll).",
            source=f"appendix A, Fig. 7c{beyond}",
            note=where,
        ),
    ]


def comparison_claims(
    task: str, evaluation: EvaluationSummary, least_advantage: dict[str, float]
) -> list[Claim]:
    """Fig. 9's finding, baseline by baseline, on unseen problems.

    ``least_advantage`` maps a baseline to the relative advantage also asked for.
    """
    learned = evaluation.optimizers["learned"]
    claims = []
    for name, difference in evaluation.learned_minus.items():
        baseline = evaluation.optimizers[name]
        scores = (
            f"learned {_score(learned)}, {name} {_score(baseline)}; "
            f"paired difference {_score(difference)}"
        )
        lower_by = _in_standard_errors(difference) if math.isfinite(learned.mean) else None
        claims.append(_beats(task, name, lower_by, scores))
        if name in least_advantage:
            ratio = _ratio(learned.mean, baseline.mean)
            claims.append(
                at_least(
                    least_advantage[name],
                    None if ratio is None else 1.0 - ratio,
                    id=f"{task}.advantage_over_{name}",
                    task=task,
                    statement=f"With more meta-training the learned optimizer outperforms tuned "
                    f"{name} (relative advantage in meta-objective).",
                    source="appendix A",
                    note=scores,
                )
            )
    return claims


def claims_not_measured(task: str, baselines: Sequence[str], why: str) -> list[Claim]:
    """Fig. 9's finding for a task that this study could not look at."""
    return [_beats(task, name, None, f"not measured: {why}") for name in baselines]


def rerun_claims(task: str, reruns: dict[str, Rerun]) -> list[Claim]:
    """Every search's best combination scores the same when run again from the stored table.

    ``reruns`` maps each baseline to its ``stored`` and ``rerun`` scores.
    """
    claims = []
    for name, scores in reruns.items():
        ratio = _ratio(scores.rerun, scores.stored)
        claims.append(
            at_most(
                1e-5,
                None if ratio is None else abs(ratio - 1.0),
                id=f"{task}.{name}_reproduces_from_its_table",
                task=task,
                statement=f"Tuned {name} reproduces its score when run again from the stored "
                "search table (relative difference).",
                source="appendix C.3",
                note=f"stored {_number(scores.stored)}, run again {_number(scores.rerun)}",
            )
        )
    return claims


def interior_claims(task: str, edges: dict[str, list[str]]) -> list[Claim]:
    """No search's best combination lies on an edge of its grid; ``edges`` names those that do."""
    return [
        at_most(
            0,
            len(at_fault),
            id=f"{task}.{name}_best_is_interior",
            task=task,
            statement=f"The best hyperparameters of {name} lie inside the grid "
            "(hyperparameters on an edge).",
            source="appendix C.3",
            note=f"on an edge: {', '.join(at_fault)}" if at_fault else "",
        )
        for name, at_fault in edges.items()
    ]


def _beats(task: str, baseline: str, lower_by: float | None, note: str) -> Claim:
    return at_least(
        2.0,
        lower_by,
        id=f"{task}.learned_beats_{baseline}",
        task=task,
        statement=f"The learned optimizer has a lower meta-objective than tuned {baseline} "
        "on unseen problems (paired difference in standard errors).",
        source="appendix C.2, Fig. 9",
        note=note,
    )


def _ratio(above: float, below: float) -> float | None:
    """Of two numbers, if both are known and finite."""
    return above / below if math.isfinite(above) and math.isfinite(below) and below else None


def _number(value: float) -> str:
    return f"{value:.7g}" if math.isfinite(value) else "not finite"


def _in_standard_errors(difference: MeanAndError[float]) -> float | None:
    """How many standard errors the learned optimizer is below; inf where the other diverged."""
    mean, error = difference.mean, difference.standard_error
    if not math.isfinite(mean):
        return math.inf
    return -mean / error if error and math.isfinite(error) else None


def _score(score: Score | MeanAndError[float]) -> str:
    if not math.isfinite(score.mean):
        return "diverged"
    error = score.standard_error
    return f"{score.mean:.4g} ± {f'{error:.2g}' if math.isfinite(error) else 'unknown'}"
