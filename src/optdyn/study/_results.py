"""What a task's part of a run folder holds, read back for claims and figures."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from optdyn.evaluation._evaluate import Evaluation
from optdyn.runs._analysis_run import SUMMARY as ANALYSIS_SUMMARY
from optdyn.runs._analysis_run import read_analysis
from optdyn.runs._distillation_run import SUMMARY as DISTILLATION_SUMMARY
from optdyn.runs._distillation_run import read_distillation
from optdyn.runs._evaluation_run import EVALUATION, load_evaluation, read_evaluations
from optdyn.runs._evaluation_run import SUMMARY as EVALUATION_SUMMARY
from optdyn.runs._mechanisms_run import SUMMARY as MECHANISMS_SUMMARY
from optdyn.runs._mechanisms_run import read_mechanisms
from optdyn.runs._metrics_log import read_metrics
from optdyn.runs._training_run import METRICS
from optdyn.runs._tuning_run import RERUNS, load_tables, read_reruns
from optdyn.search import SearchTable


@dataclasses.dataclass(frozen=True)
class TaskResults:
    """One task's results: ``analysis`` and ``summary`` are its two JSON summaries.

    ``reruns``: see `rerun_tables`; ``explained``: `explain_task`; ``distilled``:
    `distill_task`. ``normalization``: the meta-objective's.
    """

    task: str
    training: list[dict[str, Any]]
    tables: dict[str, SearchTable]
    evaluations: dict[str, Evaluation]
    summary: dict[str, Any]
    analysis: dict[str, Any]
    reruns: dict[str, dict[str, Any]]
    explained: dict[str, Any]
    distilled: dict[str, Any]
    normalization: str


def read_results(folder: Path, task: str, normalization: str) -> TaskResults:
    """Read the folder of ``task``. Raises `UserError` for a part missing or damaged."""
    summary = read_evaluations(folder / EVALUATION_SUMMARY)
    evaluations = {
        name: load_evaluation(folder / EVALUATION / f"{name}.json")
        for name in summary["optimizers"]
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


def column(rows: list[dict[str, Any]], name: str) -> np.ndarray:
    """One field of ``rows`` as an array (see `finite`)."""
    return finite([row[name] for row in rows])


def finite(values: list[float | None]) -> np.ndarray:
    """Stored numbers as an array; null, which stands for what is not finite, is NaN."""
    return np.array([np.nan if value is None else value for value in values])


def complex_column(pairs: list[list[float]]) -> np.ndarray:
    """Complex numbers from their stored real and imaginary parts."""
    parts = np.asarray(pairs, float).reshape(-1, 2)
    return parts[:, 0] + 1j * parts[:, 1]
