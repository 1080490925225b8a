"""What a task's part of a run folder holds, read back for claims and figures."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from optdyn.evaluation._evaluate import Evaluation
from optdyn.runs import (
    AnalysisResult,
    DistillationResult,
    EvaluationSummary,
    MechanismsResult,
    TrainingRow,
    load_tables,
    read_analysis,
    read_distillation,
    read_evaluations,
    read_mechanisms,
    read_metrics,
    read_reruns,
)
from optdyn.runs._analysis_run import SUMMARY as ANALYSIS_SUMMARY
from optdyn.runs._distillation_run import SUMMARY as DISTILLATION_SUMMARY
from optdyn.runs._evaluation_run import EVALUATION, load_evaluation
from optdyn.runs._evaluation_run import SUMMARY as EVALUATION_SUMMARY
from optdyn.runs._mechanisms_run import SUMMARY as MECHANISMS_SUMMARY
from optdyn.runs._results import Rerun
from optdyn.runs._training_run import METRICS
from optdyn.runs._tuning_run import RERUNS
from optdyn.search import SearchTable


@dataclasses.dataclass(frozen=True)
class TaskResults:
    """One task's results, as the functions of `optdyn.runs` stored them.

    ``normalization``: the meta-objective's.
    """

    task: str
    training: list[TrainingRow]
    tables: dict[str, SearchTable]
    evaluations: dict[str, Evaluation]
    summary: EvaluationSummary
    analysis: AnalysisResult
    reruns: dict[str, Rerun]
    explained: MechanismsResult
    distilled: DistillationResult
    normalization: str


def read_results(folder: Path, task: str, normalization: str) -> TaskResults:
    """Read the folder of ``task``. Raises `UserError` for a part missing or damaged."""
    summary = read_evaluations(folder / EVALUATION_SUMMARY)
    evaluations = {
        name: load_evaluation(folder / EVALUATION / f"{name}.json") for name in summary.optimizers
    }
    return TaskResults(
        task=task,
        training=read_metrics(folder / METRICS),
        tables=load_tables(folder),
        evaluations={name: found for name, found in evaluations.items() if found is not None},
        summary=summary,
        analysis=read_analysis(folder / ANALYSIS_SUMMARY),
        reruns=read_reruns(folder / RERUNS),
        explained=read_mechanisms(folder / MECHANISMS_SUMMARY),
        distilled=read_distillation(folder / DISTILLATION_SUMMARY),
        normalization=normalization,
    )
