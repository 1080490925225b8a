"""What a task's part of a run folder holds, read back for claims, figures and report."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from optdyn import runs
from optdyn.errors import UserError
from optdyn.evaluation import Evaluation
from optdyn.figures._style import readable
from optdyn.runs import (
    _analysis_run,
    _distillation_run,
    _evaluation_run,
    _mechanisms_run,
    _search_run,
    _stage_run,
    _training_run,
    _tuning_run,
)
from optdyn.search import SearchTable
from optdyn.study._recipes import own_options
from optdyn.study._seeds import SEEDS, SeedsResult
from optdyn.study._shipped import shipped_part

T = TypeVar("T")
ABSENT = {
    "training": "it was not meta-trained here",
    "tables": "no baseline has been tuned on this task",
    "summary": "its optimizers have not been evaluated",
    "losses": "its optimizers have not been evaluated",
    "analysis": "this task's optimizer has not been analysed",
    "reruns": "its searches have not been run again",
    "mechanisms": "this task's mechanisms have not been measured",
    "explorer": "no modes have been prepared to try",
    "distillation": "it has not been distilled",
    "searches": "no meta learning rate was searched",
    "linear": "no linear optimizer was tuned",
    "seeds": "one training was made",
    "stage_search": "no training was made to look for momentum",
}
"""Why a part is not there, in the words of the page."""
HERE = "trained and tuned in this run"
SHIPPED = "weights and search tables shipped with the package, evaluated in this run"


@dataclasses.dataclass(frozen=True, eq=False)
class TaskResults:
    """One task's results; a part that is missing or damaged is None, and ``faults`` says why.

    ``evaluations``: each optimizer's losses, of those in ``summary``. ``card``: of the training;
    ``shipped``: it ships with the package, with the search tables. ``relative``: whether a
    problem's losses are divided by its first.
    """

    task: str
    training: list[runs.TrainingRow] | None
    tables: dict[str, SearchTable] | None
    summary: runs.EvaluationSummary | None
    evaluations: dict[str, Evaluation]
    losses: runs.LossesAtSteps | None
    analysis: runs.AnalysisResult | None
    reruns: runs.RerunsResult | None
    mechanisms: runs.MechanismsResult | None
    explorer: runs.ExplorerResult | None
    distillation: runs.DistillationResult | None
    searches: list[runs.SearchResult] | None
    linear: runs.LinearReferencesResult | None
    seeds: SeedsResult | None
    stage_search: runs.StageSearchResult | None
    card: runs.Card | None
    shipped: bool
    relative: bool
    faults: Mapping[str, str]

    def has(self, *parts: str) -> bool:
        """Whether all of these parts are there."""
        return all(getattr(self, part) is not None for part in parts)

    @property
    def title(self) -> str:
        """The task's name as a reader would write it."""
        return readable(self.task)

    @property
    def problems_seen(self) -> int:
        """How many problems meta-training unrolled."""
        return self.card.protocol.num_meta_steps * self.card.protocol.batch_size if self.card else 0

    @property
    def origin(self) -> str:
        """Where weights and search tables came from, and what was run in meta-training."""
        if self.card is None:
            return "tuned in this run" if self.tables else ""
        architecture, protocol = self.card.architecture, self.card.protocol
        options = own_options(self.task, self.card.task_options)
        parts = [
            f"{architecture.units} units ({architecture.cell_name})",
            f"batch {protocol.batch_size}",
            f"{protocol.num_meta_steps} meta-steps",
            *(f"{name} {value}" for name, value in options.items()),
            *(["fine-tuned from earlier weights"] if self.card.initial else []),
        ]
        return f"{SHIPPED if self.shipped else HERE}; meta-training: {', '.join(parts)}"


def read_results(run: runs.RunFolder, task: str) -> TaskResults:
    """Read the results of ``task`` in ``run``, taking what is there."""
    folder, faults = run.task_folder(task), dict[str, str]()

    def part(name: str, place: str, read: Callable[[Path], T]) -> T | None:
        if not (folder / place).exists():
            faults[name] = f"{ABSENT[name]} (no {folder.name}/{place})"
            return None
        try:
            return read(folder / place)
        except UserError as error:
            faults[name] = str(error)
            return None

    def result(
        name: str, place: str, kind: type[T], read: Callable[[Path, type[T]], T] = runs.read_result
    ) -> T | None:
        return part(name, place, lambda path: read(path, kind))

    of_task = runs.read_task_result
    summary = result("summary", _evaluation_run.SUMMARY, runs.EvaluationSummary)
    beside, load = folder / _evaluation_run.EVALUATION, _evaluation_run.load_evaluation
    losses_of = (
        {name: load(beside / f"{name}.json") for name in summary.optimizers} if summary else {}
    )
    judged = run.settings().get(f"evaluate/{task}", {})
    return TaskResults(
        task=task,
        training=part("training", _training_run.METRICS, runs.read_metrics),
        tables=part("tables", _tuning_run.TUNING, lambda _: runs.load_tables(folder)),
        summary=summary,
        evaluations={name: found for name, found in losses_of.items() if found is not None},
        losses=result("losses", _evaluation_run.LOSSES, runs.LossesAtSteps),
        analysis=result("analysis", _analysis_run.SUMMARY, runs.AnalysisResult, of_task),
        reruns=result("reruns", _tuning_run.RERUNS, runs.RerunsResult),
        mechanisms=result("mechanisms", _mechanisms_run.SUMMARY, runs.MechanismsResult, of_task),
        explorer=result("explorer", _analysis_run.EXPLORER, runs.ExplorerResult, of_task),
        distillation=result(
            "distillation", _distillation_run.SUMMARY, runs.DistillationResult, of_task
        ),
        searches=part("searches", _search_run.SEARCHES, lambda _: runs.read_searches(folder)),
        linear=result("linear", _tuning_run.LINEAR, runs.LinearReferencesResult),
        seeds=result("seeds", SEEDS, SeedsResult),
        stage_search=result("stage_search", _stage_run.STAGE_SEARCH, runs.StageSearchResult),
        card=_training_run.training_card(run, task),
        shipped=shipped_part(task) in run.settings(),
        relative=judged.get("objective", {}).get("normalization") == "first",
        faults=faults,
    )
