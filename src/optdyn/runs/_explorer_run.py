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
from optdyn.evaluation import ProblemSet
from optdyn.mechanisms._mode_choices import choices, kept_modes_curves
from optdyn.mechanisms._momentum_stage import HISTORIES
from optdyn.optimizers._componentwise_rnn import ComponentwiseRNN
from optdyn.runs import _forms as forms
from optdyn.runs._analysis_run import SUMMARY as ANALYSIS_SUMMARY
from optdyn.runs._analysis_run import AnalysisSettings, read_analysis, require_own_task
from optdyn.runs._checkpoints import analysis_path, fingerprint
from optdyn.runs._files import read_signed_json, to_plain, write_signed_json
from optdyn.runs._forms import require_form
from optdyn.runs._mechanisms_run import kept_result
from optdyn.runs._run_folder import RunFolder
from optdyn.runs._training_run import CHECKPOINTS, load_trained
from optdyn.tasks import Problem, make_task
from optdyn.tasks._linear_regression import least_squares
from optdyn.tasks._rosenbrock import rosenbrock

SUMMARY = "explorer.json"
DIGITS = 6
LOSSES: dict[Callable[..., Any], str] = {
    least_squares: "least_squares",
    rosenbrock: "rosenbrock",
}
"""Losses that the explorer can compute by itself, and what it calls them."""
PROBLEMS = forms.fields(
    loss=forms.text, start=forms.numbers("problems", "parameters"), data=forms.anything
)
CHOICES = forms.table(
    forms.fields(
        full=forms.numbers("steps"),
        sets=forms.rows(
            forms.fields(
                name=forms.text, kept=forms.rows(forms.count), curve=forms.numbers("steps")
            )
        ),
    )
)


def explore_task(
    run: RunFolder,
    task_name: str,
    task_options: dict[str, Any],
    settings: AnalysisSettings,
    few: AnalysisSettings,
) -> dict[str, Any]:
    """What lets a reader choose modes of a task's analysed optimizer and see the loss.

    Kept in the task's ``explorer.json``. For a loss of `LOSSES`: the validation
    ``problems`` of ``settings``, on which any choice can be run where it is read.
    For others: the loss curves of some ``choices`` of modes at the momentum stage and
    the last one, on the (fewer) problems of ``few``. Needs the task's analysis; raises
    `UserError` where that is missing.
    """
    folder = run.task_folder(task_name)
    analysis = read_analysis(folder / ANALYSIS_SUMMARY)
    stages = sorted({analysis["momentum_stage"], analysis["final"]})
    loaded = {
        step: load_trained(run, task_name, analysis_path(folder / CHECKPOINTS, step))[0]
        for step in stages
    }
    inputs = to_plain(
        {
            "task": task_name,
            "task_options": task_options,
            "settings": [settings, few],
            "checkpoints": [fingerprint(optimizer) for optimizer in loaded.values()],
        }
    )
    path = folder / SUMMARY
    done = kept_result(path, inputs, _explored)
    if done is not None:
        return done
    task = make_task(task_name, **task_options)
    validation = settings.problems(task)
    result = {"inputs": inputs, "num_steps": settings.num_steps}
    if validation.problems.loss_fn in LOSSES:
        result["problems"] = _problems(validation.problems)
    else:
        print(f"trying sets of modes of {task_name}", flush=True)
        result["choices"] = _choices(few.problems(task), loaded)
        result["num_problems"] = few.num_problems
    write_signed_json(path, result)
    return to_plain(result)


def _problems(problems: Problem) -> dict[str, Any]:
    """The loss's name, and for each problem its start and what its loss depends on."""
    data = [jax.tree.leaves(problems.params)[0], *problems.data]
    start, *rest = ([rounded(row) for row in np.asarray(leaf)] for leaf in data)
    return {"loss": LOSSES[problems.loss_fn], "start": start, "data": rest}


def _choices(validation: ProblemSet, loaded: dict[int, ComponentwiseRNN]) -> dict[str, Any]:
    """At each stage: sets of modes, with their losses and the whole optimizer's."""
    full = validation.curves(ComponentwiseRNN.as_optax)
    histories = validation.gradient_histories(ComponentwiseRNN.as_optax, HISTORIES)
    found: dict[str, Any] = {}
    for meta_step, optimizer in loaded.items():
        point = operating_point(step_map(optimizer), histories(optimizer))
        sets = choices(point.modes)
        curves = kept_modes_curves(validation, point, list(sets.values()))
        found[str(meta_step)] = {
            "full": rounded(validation.mean_curve(full(optimizer)).mean),
            "sets": [
                {"name": name, "kept": kept, "curve": rounded(curve)}
                for (name, kept), curve in zip(sets.items(), curves, strict=True)
            ],
        }
    return found


def rounded(values: np.ndarray) -> list[Any]:
    """Nested lists of ``values`` to the digits that a calculation elsewhere needs."""
    if values.ndim > 1:
        return [rounded(row) for row in values]
    return [float(f"{value:.{DIGITS}g}") for value in values]


def read_explorer(folder: Path) -> dict[str, Any]:
    """What `explore_task` kept in a task's folder. Raises `UserError` if missing or damaged."""
    path = folder / SUMMARY
    if not path.exists():
        raise UserError(f"{path}: no such file (a study writes it)")
    found = read_signed_json(path)
    require_form(path, found, _explored)
    require_own_task(path, found)
    return found


def _explored(value: Any, at: str, sizes: forms.Sizes) -> None:
    """The form of the summary."""
    forms.fields(inputs=forms.fields(task=forms.text), num_steps=forms.count)(value, at, sizes)
    if "problems" in value:
        forms.fields(problems=PROBLEMS)(value, at, sizes)
    else:
        forms.fields(choices=CHOICES, num_problems=forms.count)(value, at, sizes)
