"""Run folders: trainings, searches, evaluations and analyses that can be stopped and resumed.

Every function takes an open run folder (`open_run`), a task object and typed settings. It
stores a typed result, goes on where it was stopped, and returns the stored result when
nothing that it depends on has changed.
"""

from optdyn.distributed._interrupts import Interrupted
from optdyn.runs._analysis_run import analyze_task, explore_task, read_analysis, read_explorer
from optdyn.runs._cards import Card
from optdyn.runs._checkpoints import load, save
from optdyn.runs._distillation_fit import Distillation, Distilling, fit_sizes, read_fitted
from optdyn.runs._distillation_run import distill_task, read_distillation
from optdyn.runs._evaluation_run import evaluate_all, read_evaluations, read_losses
from optdyn.runs._explained_results import DistillationResult, FittedResult, MechanismsResult
from optdyn.runs._mechanisms_run import explain_task, read_mechanisms
from optdyn.runs._metrics_log import TrainingRow, read_metrics
from optdyn.runs._results import (
    AnalysisResult,
    EvaluationSummary,
    ExplorerResult,
    HeldOut,
    LossesAtSteps,
    SearchResult,
)
from optdyn.runs._run_folder import RunFolder, open_run
from optdyn.runs._search_run import (
    Base,
    Sweep,
    SweepRow,
    read_search,
    read_searches,
    run_sweep,
    search,
)
from optdyn.runs._stage_run import StageSearchResult, StageTraining, find_stage, read_stage_search
from optdyn.runs._training_run import Watch, load_trained, meta_train, train, train_along
from optdyn.runs._tuning_run import (
    LinearReferencesResult,
    load_table,
    load_tables,
    load_tuned,
    read_linear,
    read_reruns,
    rerun_tables,
    save_table,
    tune,
    tune_linear,
)

__all__ = [
    "AnalysisResult",
    "Base",
    "Card",
    "Distillation",
    "DistillationResult",
    "Distilling",
    "EvaluationSummary",
    "ExplorerResult",
    "FittedResult",
    "HeldOut",
    "Interrupted",
    "LinearReferencesResult",
    "LossesAtSteps",
    "MechanismsResult",
    "RunFolder",
    "SearchResult",
    "StageSearchResult",
    "StageTraining",
    "Sweep",
    "SweepRow",
    "TrainingRow",
    "Watch",
    "analyze_task",
    "distill_task",
    "evaluate_all",
    "explain_task",
    "explore_task",
    "find_stage",
    "fit_sizes",
    "load",
    "load_table",
    "load_tables",
    "load_trained",
    "load_tuned",
    "meta_train",
    "open_run",
    "read_analysis",
    "read_distillation",
    "read_evaluations",
    "read_explorer",
    "read_fitted",
    "read_linear",
    "read_losses",
    "read_mechanisms",
    "read_metrics",
    "read_reruns",
    "read_search",
    "read_searches",
    "read_stage_search",
    "rerun_tables",
    "run_sweep",
    "save",
    "save_table",
    "search",
    "train",
    "train_along",
    "tune",
    "tune_linear",
]
