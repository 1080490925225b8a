"""Run folders: trainings, searches, evaluations and analyses that can be stopped and resumed.

Every function takes an open run folder (`open_run`), a task object and typed settings. It
stores a typed result, goes on where it was stopped, and returns the stored result when
nothing that it depends on has changed.
"""

from optdyn.distributed._interrupts import Interrupted
from optdyn.runs._analysis_run import analyze_task, explore_task
from optdyn.runs._cards import Card
from optdyn.runs._checkpoints import load, save
from optdyn.runs._distillation_fit import Distillation, Distilling, FittedResult
from optdyn.runs._distillation_run import DistillationResult, distill_task
from optdyn.runs._evaluation_run import EvaluationSummary, LossesAtSteps, evaluate_all
from optdyn.runs._mechanisms_run import MechanismsResult, explain_task
from optdyn.runs._metrics_log import TrainingRow, read_metrics
from optdyn.runs._results import AnalysisResult, ExplorerResult, HeldOut
from optdyn.runs._run_folder import RunFolder, open_run, read_task_result
from optdyn.runs._search_run import Base, SearchResult, Sweep, read_searches, run_sweep, search
from optdyn.runs._stage_run import StageSearchResult, StageTraining, find_stage
from optdyn.runs._store import read_result
from optdyn.runs._training_run import Watch, meta_train, train, train_along
from optdyn.runs._tuning_run import (
    LinearReferencesResult,
    RerunsResult,
    load_tables,
    rerun_tables,
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
    "RerunsResult",
    "RunFolder",
    "SearchResult",
    "StageSearchResult",
    "StageTraining",
    "Sweep",
    "TrainingRow",
    "Watch",
    "analyze_task",
    "distill_task",
    "evaluate_all",
    "explain_task",
    "explore_task",
    "find_stage",
    "load",
    "load_tables",
    "meta_train",
    "open_run",
    "read_metrics",
    "read_result",
    "read_searches",
    "read_task_result",
    "rerun_tables",
    "run_sweep",
    "save",
    "search",
    "train",
    "train_along",
    "tune",
    "tune_linear",
]
