"""What a task's part of a run folder holds, read back for claims, figures and report."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from optdyn.errors import UserError
from optdyn.evaluation import Evaluation
from optdyn.figures._style import readable
from optdyn.runs._analysis_run import SUMMARY as ANALYSIS
from optdyn.runs._analysis_run import read_analysis
from optdyn.runs._cards import Card
from optdyn.runs._distillation_run import SUMMARY as DISTILLATION
from optdyn.runs._distillation_run import read_distillation
from optdyn.runs._evaluation_run import (
    EVALUATION,
    LOSSES,
    load_evaluation,
    read_evaluations,
    read_losses,
)
from optdyn.runs._evaluation_run import SUMMARY as EVALUATIONS
from optdyn.runs._explained_results import DistillationResult, MechanismsResult
from optdyn.runs._explorer_run import SUMMARY as EXPLORER
from optdyn.runs._explorer_run import read_explorer
from optdyn.runs._linear_reference_run import LINEAR, LinearReferencesResult, read_linear
from optdyn.runs._mechanisms_run import SUMMARY as MECHANISMS
from optdyn.runs._mechanisms_run import read_mechanisms
from optdyn.runs._metrics_log import TrainingRow, read_metrics
from optdyn.runs._results import (
    AnalysisResult,
    EvaluationSummary,
    ExplorerResult,
    LossesAtSteps,
    Rerun,
    SearchResult,
)
from optdyn.runs._run_folder import RunFolder
from optdyn.runs._search_run import SEARCHES, read_searches
from optdyn.runs._stage_run import STAGE_SEARCH, StageSearchResult, read_stage_search
from optdyn.runs._training_run import METRICS, training_card
from optdyn.runs._tuning_run import RERUNS, TUNING, load_tables, read_reruns
from optdyn.search import SearchTable
from optdyn.study._recipes import own_options
from optdyn.study._seeds import SEEDS, SeedsResult, read_seeds
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
    training: list[TrainingRow] | None
    tables: dict[str, SearchTable] | None
    summary: EvaluationSummary | None
    evaluations: dict[str, Evaluation]
    losses: LossesAtSteps | None
    analysis: AnalysisResult | None
    reruns: dict[str, Rerun] | None
    mechanisms: MechanismsResult | None
    explorer: ExplorerResult | None
    distillation: DistillationResult | None
    searches: list[SearchResult] | None
    linear: LinearReferencesResult | None
    seeds: SeedsResult | None
    stage_search: StageSearchResult | None
    card: Card | None
    shipped: bool
    relative: bool
    faults: Mapping[str, str]

    def has(self, *parts: str) -> bool:
        """Whether all of these parts are there."""
        return all(getattr(self, part) is not None for part in parts)

    def has_any(self, *parts: str) -> bool:
        """Whether at least one of these parts is there."""
        return any(getattr(self, part) is not None for part in parts)

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


def read_results(run: RunFolder, task: str) -> TaskResults:
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

    def evaluations(path: Path) -> tuple[EvaluationSummary, dict[str, Evaluation]]:
        summary = read_evaluations(path)
        read = {n: load_evaluation(folder / EVALUATION / f"{n}.json") for n in summary.optimizers}
        return summary, {name: found for name, found in read.items() if found is not None}

    summary, losses_of = part("summary", EVALUATIONS, evaluations) or (None, {})
    card, judged = training_card(run, task), run.settings().get(f"evaluate/{task}", {})
    return TaskResults(
        task=task,
        training=part("training", METRICS, read_metrics),
        tables=part("tables", TUNING, lambda _: load_tables(folder)),
        summary=summary,
        evaluations=losses_of,
        losses=part("losses", LOSSES, read_losses),
        analysis=part("analysis", ANALYSIS, read_analysis),
        reruns=part("reruns", RERUNS, read_reruns),
        mechanisms=part("mechanisms", MECHANISMS, read_mechanisms),
        explorer=part("explorer", EXPLORER, lambda _: read_explorer(folder)),
        distillation=part("distillation", DISTILLATION, read_distillation),
        searches=part("searches", SEARCHES, lambda _: read_searches(folder)),
        linear=part("linear", LINEAR, read_linear),
        seeds=part("seeds", SEEDS, read_seeds),
        stage_search=part("stage_search", STAGE_SEARCH, read_stage_search),
        card=card,
        shipped=shipped_part(task) in run.settings(),
        relative=judged.get("objective", {}).get("normalization") == "first",
        faults=faults,
    )
