"""What the report's explorer needs beyond the analysis: problems, or losses, to try modes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from optdyn.dynamics import step_map
from optdyn.dynamics._operating_point import operating_point
from optdyn.errors import UserError
from optdyn.evaluation import VALIDATION_STREAM, ProblemSet
from optdyn.mechanisms._mode_choices import choices, kept_modes_curves
from optdyn.mechanisms._momentum_stage import HISTORIES
from optdyn.optimizers._componentwise_rnn import ComponentwiseRNN
from optdyn.runs._analysis_run import SUMMARY as ANALYSIS_SUMMARY
from optdyn.runs._analysis_run import read_analysis
from optdyn.runs._checkpoints import analysis_path, fingerprint
from optdyn.runs._results import (
    ExplorerInputs,
    ExplorerProblems,
    ExplorerResult,
    HeldOut,
    ModeSet,
    ModeSets,
)
from optdyn.runs._run_folder import RunFolder, read_task_result
from optdyn.runs._store import stored_result, write_result
from optdyn.runs._training_run import CHECKPOINTS, load_trained
from optdyn.tasks import Problem, Task, describe_task
from optdyn.tasks._linear_regression import least_squares
from optdyn.tasks._rosenbrock import rosenbrock

SUMMARY = "explorer.json"
DIGITS = 6
LOSSES: dict[Callable[..., Any], str] = {
    least_squares: "least_squares",
    rosenbrock: "rosenbrock",
}
"""Losses that the explorer can compute by itself, and what it calls them."""


def explore_task(run: RunFolder, task: Task, held_out: HeldOut, few: HeldOut) -> ExplorerResult:
    """What lets a reader choose modes of a task's analysed optimizer and see the loss.

    Stored in the task's ``explorer.json``. For a loss of `LOSSES`: the validation
    ``problems`` of ``held_out``, on which the page itself can run any choice.
    For others: the loss curves of some ``choices`` of modes at the momentum stage and
    the last one, on the (fewer) problems of ``few``. Needs the task's analysis; raises
    `UserError` where that is missing.
    """
    folder, described = run.task_folder(task), describe_task(task)
    analysis = read_analysis(folder / ANALYSIS_SUMMARY)
    stages = sorted({analysis.momentum_stage, analysis.final})
    loaded = {
        step: load_trained(run, task, analysis_path(folder / CHECKPOINTS, step))[0]
        for step in stages
    }
    inputs = ExplorerInputs(
        task=described.name,
        task_options=described.options,
        settings=[held_out, few],
        checkpoints=[fingerprint(optimizer) for optimizer in loaded.values()],
    )
    path = folder / SUMMARY
    done = stored_result(path, ExplorerResult, inputs)
    if done is not None:
        return done
    num_steps = held_out.objective.num_steps
    problems = held_out.problems(task, VALIDATION_STREAM).problems
    if problems.loss_fn in LOSSES:
        result = ExplorerResult(inputs, num_steps, problems=_problems(problems))
    else:
        print(f"trying sets of modes of {described.name}", flush=True)
        found = _choices(few.problems(task, VALIDATION_STREAM), loaded)
        result = ExplorerResult(inputs, num_steps, choices=found, num_problems=few.num_problems)
    write_result(path, result)
    return result


def _problems(problems: Problem) -> ExplorerProblems:
    """The loss's name, and for each problem its start and what its loss depends on."""
    data = [jax.tree.leaves(problems.params)[0], *problems.data]
    start, *rest = ([rounded(row) for row in np.asarray(leaf)] for leaf in data)
    return ExplorerProblems(LOSSES[problems.loss_fn], np.array(start), rest)


def _choices(validation: ProblemSet, loaded: dict[int, ComponentwiseRNN]) -> dict[str, ModeSets]:
    """At each stage: sets of modes, with their losses and the whole optimizer's."""
    full = validation.curves(ComponentwiseRNN.as_optax)
    histories = validation.gradient_histories(ComponentwiseRNN.as_optax, HISTORIES)
    found = {}
    for meta_step, optimizer in loaded.items():
        point = operating_point(step_map(optimizer), histories(optimizer))
        sets = choices(point.modes)
        curves = kept_modes_curves(validation, point, list(sets.values()))
        found[str(meta_step)] = ModeSets(
            full=np.array(rounded(validation.mean_curve(full(optimizer)).mean)),
            sets=[
                ModeSet(name, modes, np.array(rounded(curve)))
                for (name, modes), curve in zip(sets.items(), curves, strict=True)
            ],
        )
    return found


def rounded(values: np.ndarray) -> list[Any]:
    """Nested lists of ``values`` to the digits that a calculation elsewhere needs."""
    if values.ndim > 1:
        return [rounded(row) for row in values]
    return [float(f"{value:.{DIGITS}g}") for value in values]


def read_explorer(folder: Path) -> ExplorerResult:
    """What `explore_task` stored in a task's folder. Raises `UserError` if missing or damaged."""
    path = folder / SUMMARY
    if not path.exists():
        raise UserError(f"{path}: no such file (a study writes it)")
    return read_task_result(path, ExplorerResult)
