"""The momentum stage looked for in trainings of its own, in a run folder."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from optdyn import mechanisms
from optdyn.errors import UserError
from optdyn.evaluation import EVALUATION_STREAM, VALIDATION_STREAM
from optdyn.meta_training import MetaTraining
from optdyn.optimizers import Architecture
from optdyn.runs._cards import Card, versions
from optdyn.runs._checkpoints import load_optimizer, save_optimizer
from optdyn.runs._progress import progress
from optdyn.runs._results import HeldOut
from optdyn.runs._run_folder import RunFolder
from optdyn.runs._store import read_result, write_result
from optdyn.runs._tuning_run import tuned_values
from optdyn.tasks import Task, describe_task

STAGE = "momentum_stage.safetensors"
STAGE_SEARCH = "momentum_search.json"


@dataclasses.dataclass(frozen=True)
class StageTraining:
    """Trainings in which the momentum stage is looked for, beside a recipe's own."""

    architecture: Architecture
    protocol: MetaTraining
    plan: mechanisms.StageSearch = mechanisms.StageSearch()
    thresholds: mechanisms.StageThresholds = mechanisms.StageThresholds()


@dataclasses.dataclass(frozen=True)
class StageSearchRow(mechanisms.SeedStage):
    """What one training showed, and the choices that it was made with."""

    gain: float
    learning_rate: float
    average_over: int | None


@dataclasses.dataclass(frozen=True)
class StageSearchResult:
    """``momentum_search.json``: every training looked through, in order.

    ``tuned``: the best tuned momentum on the problems that chose. ``judged``, on fresh ones: the
    row of the stage that was found last.
    """

    task: str
    thresholds: mechanisms.StageThresholds
    tuned: mechanisms.TunedMomentum
    rows: list[StageSearchRow]
    judged: mechanisms.StageRow


def find_stage(
    run: RunFolder, task: Task, held_out: HeldOut, what: StageTraining, mesh: Mesh | None = None
) -> Path:
    """Look for the momentum stage as ``what`` says; returns the checkpoint that it is.

    Needs the task's tuned momentum. The checkpoint and `StageSearchResult` lie in the task's
    folder; where they are there already nothing is done. See `find_momentum_stage`.

    Raises `UserError` for settings that differ from the folder's, and where no training has a
    checkpoint that performs like tuned momentum.
    """
    name = run.settle_work("stage", task, {**vars(what), "held_out": held_out})
    folder = run.task_folder(task)
    path = folder / STAGE
    with contextlib.suppress(UserError):
        load_optimizer(path)
        read_result(folder / STAGE_SEARCH, StageSearchResult)
        return path
    tuned = tuned_values(folder, "momentum")
    choosing, fresh = (
        mechanisms.MomentumComparison(held_out.problems(task, stream), **tuned)
        for stream in (VALIDATION_STREAM, EVALUATION_STREAM)
    )
    with progress(f"looking for momentum on {name}", len(what.plan.seeds)) as advance:
        found = mechanisms.find_momentum_stage(
            mechanisms.trainings_of(task, what.architecture, what.protocol, mesh),
            choosing,
            fresh,
            plan=what.plan,
            thresholds=what.thresholds,
            on_training=lambda seen: advance(
                1 + what.plan.seeds.index(seen.seed), f"seed {seen.seed}: {seen.met} checkpoints"
            ),
        )
    card = Card(
        task=name,
        task_options=describe_task(task).options,
        architecture=what.architecture,
        protocol=what.protocol,
        seed=found.seed,
        meta_step=found.chosen.meta_step,
        meta_objective=found.chosen.meta_objective,
        versions=versions(),
    )
    made_with: dict[str, Any] = {
        "gain": what.architecture.encoding.gain,
        "learning_rate": what.protocol.learning_rate,
        "average_over": what.protocol.average_over,
    }
    rows = [StageSearchRow(**vars(seen), **made_with) for seen in found.trainings]
    result = StageSearchResult(name, what.thresholds, choosing.tuned, rows, found.judged)
    write_result(folder / STAGE_SEARCH, result)
    save_optimizer(path, found.optimizer, card)
    return path
