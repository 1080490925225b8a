"""Runs of a second or two that save as often as they can."""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path
from typing import Any
from unittest import mock

from optdyn.cli.main import main
from optdyn.evaluation import _evaluate as evaluation
from optdyn.inner_loop import Objective
from optdyn.inner_loop import _batching as batching
from optdyn.meta_training._trainer import MetaTraining
from optdyn.optimizers._baselines import BASELINES
from optdyn.optimizers._componentwise_rnn import Architecture
from optdyn.runs._evaluation_run import evaluate_all
from optdyn.runs._metrics_log import read_metrics
from optdyn.runs._results import HeldOut
from optdyn.runs._run_folder import LOCK, open_run
from optdyn.runs._training_run import METRICS, Watch, train
from optdyn.runs._tuning_run import tune
from optdyn.search import SearchProtocol
from optdyn.tasks import Rosenbrock

searching = importlib.import_module("optdyn.search._random_search")

TASK = "rosenbrock"
ARCHITECTURE = Architecture(cell="rnn", units=3)
PROTOCOL = MetaTraining(num_meta_steps=20, unroll_length=5, batch_size=2)


def run_training(folder: Path, protocol: MetaTraining = PROTOCOL) -> None:
    """Meta-train, saving after each meta-step."""
    with open_run(folder) as run:
        watch = Watch(seconds_between_saves=0.0)
        train(run, Rosenbrock(), ARCHITECTURE, protocol, seed=0, watch=watch)


def run_tuning(folder: Path) -> None:
    """Tune momentum, four combinations to a chunk."""
    with (
        open_run(folder) as run,
        mock.patch.object(batching, "ELEMENTS_AT_ONCE", 1),
        mock.patch.object(searching, "FEWEST_RUNS", 8),
    ):
        protocol = SearchProtocol(
            Objective(5), num_samples=60, num_problems=2, rescore_top=8, rescore_problems=2
        )
        tune(run, Rosenbrock(), BASELINES["momentum"], protocol, seed=0)


def run_evaluation(folder: Path) -> None:
    """Evaluate what the folder holds, one problem to a chunk."""
    with (
        open_run(folder) as run,
        mock.patch.object(batching, "ELEMENTS_AT_ONCE", 1),
        mock.patch.object(evaluation, "FEWEST_PROBLEMS", 1),
    ):
        evaluate_all(run, Rosenbrock(), HeldOut(0, 16, Objective(5)))


def run_command(folder: Path) -> int:
    """Meta-train from the command line; the exit code."""
    words = f"train --task {TASK} --cell rnn --units 3 --meta-steps 400 --unroll-length 5"
    return main([*words.split(), "--batch-size", "2", "--devices", "1", "--out", str(folder)])


RUNS = {
    "training": run_training,
    "tuning": run_tuning,
    "evaluation": run_evaluation,
    "command": run_command,
}


def results(folder: Path) -> dict[str, Any]:
    """All that a run folder holds, but for how long each meta-step took."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.name == METRICS:
            rows = read_metrics(path)
            found[name] = [dataclasses.replace(row, seconds=0.0) for row in rows]
        elif path.is_file() and path.name != LOCK:
            found[name] = path.read_bytes()
    return found
