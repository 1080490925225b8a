"""Every checkpoint of a run taken apart in its run folder, and what the explorer needs beyond."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from optdyn.distillation import LinearAccount, linear_account
from optdyn.dynamics import impulse_mismatch, optimal_momentum, transients
from optdyn.errors import UserError
from optdyn.evaluation import EVALUATION_STREAM, VALIDATION_STREAM, ProblemSet
from optdyn.mechanisms._mode_choices import choices, kept_modes_curves
from optdyn.mechanisms._momentum_stage import (
    MomentumComparison,
    MomentumPoint,
    StageThresholds,
    operating_points,
)
from optdyn.optimizers._baselines import momentum
from optdyn.optimizers._componentwise_rnn import ComponentwiseRNN
from optdyn.runs import _results as results
from optdyn.runs._cards import describe
from optdyn.runs._checkpoints import analysis_path, fingerprint, load_optimizer
from optdyn.runs._progress import progress
from optdyn.runs._results import AnalysisResult, CheckpointRow, ExplorerResult, Fault, HeldOut
from optdyn.runs._run_folder import RunFolder, read_task_result
from optdyn.runs._store import read_if_sound, stored_result, write_result
from optdyn.runs._training_run import CHECKPOINTS, load_trained, require_checkpoints
from optdyn.runs._tuning_run import tuned_values
from optdyn.tasks import Problem, Task, describe_task
from optdyn.tasks._linear_regression import least_squares
from optdyn.tasks._rosenbrock import rosenbrock

ANALYSIS = "analysis"
SUMMARY = "analysis.json"
EXPLORER = "explorer.json"
LAYOUT = 3
"""Of a stored row; raised when rows gain a part, so that older ones are measured again."""
DIGITS = 6
"""Of numbers that are drawn, or that a calculation elsewhere needs."""
LOSSES: dict[Callable[..., Any], str] = {least_squares: "least_squares", rosenbrock: "rosenbrock"}
"""Losses that the explorer can compute by itself, and what it calls them."""


def analyze_task(
    run: RunFolder, task: Task, held_out: HeldOut, stage: Path | None = None
) -> AnalysisResult:
    """Analyse each analysis checkpoint of a task, name the momentum stage and judge it.

    Needs the task's trained checkpoints and its tuned momentum. Each checkpoint's row is
    stored in a file of ``analysis/``, so that an interrupted analysis goes on.
    ``analysis.json``, which is returned, holds them all with the tuned and the theoretical
    momentum. A checkpoint with no fixed point to linearise at is listed under ``faults``
    instead. The rule that names the stage is `StageThresholds.choose`; the stage is then judged
    on fresh problems. ``stage``: a checkpoint of another training that is judged instead.

    Raises `UserError` when training or tuning has not been done here, and for
    settings that differ from the folder's.
    """
    folder = run.task_folder(task)
    checkpoints = require_checkpoints(folder, "analyze")
    tuned_point = tuned_values(folder, "momentum")
    name = run.settle_work("analyze", task, held_out)
    inputs = results.AnalysisInputs(
        layout=LAYOUT,
        task=name,
        settings=held_out,
        momentum=tuned_point,
        checkpoints={
            path.name: fingerprint(load_trained(run, task, path)[0]) for path in checkpoints
        },
        stage=None if stage is None else fingerprint(load_optimizer(stage)[0]),
    )
    done = stored_result(folder / SUMMARY, AnalysisResult, inputs)
    if done is not None:
        return done

    comparison = MomentumComparison(held_out.problems(task, VALIDATION_STREAM), **tuned_point)
    rows: list[CheckpointRow] = []
    faults: list[Fault] = []
    with progress(f"analyzing {name}", len(checkpoints)) as advance:
        for count, path in enumerate(checkpoints, start=1):
            found = _row(path, folder / ANALYSIS / f"{path.stem}.json", comparison)
            if isinstance(found, Fault):
                faults.append(found)
            else:
                rows.append(found)
                advance(count, f"meta-step {found.meta_step}: {found.meta_objective:.4g}")
    if not rows:
        raise UserError(f"{name}: no checkpoint could be analyzed ({faults[0].fault})")
    chosen = StageThresholds().choose(rows, comparison.tuned).meta_step
    at_stage = analysis_path(folder / CHECKPOINTS, chosen) if stage is None else stage
    fresh = MomentumComparison(held_out.problems(task, EVALUATION_STREAM), **tuned_point)
    curvatures = getattr(task, "curvature_range", None)
    result = AnalysisResult(
        inputs=inputs,
        tuned=comparison.tuned,
        theory=None if curvatures is None else MomentumPoint(*optimal_momentum(*curvatures)),
        momentum_stage=chosen,
        final=rows[-1].meta_step,
        judged=_judged(at_stage, fresh, other=stage is not None),
        linear=_linear_accounts({"stage": at_stage, "final": checkpoints[-1]}, fresh),
        checkpoints=rows,
        faults=faults,
    )
    write_result(folder / SUMMARY, result)
    return result


def _row(checkpoint: Path, stored: Path, comparison: MomentumComparison) -> CheckpointRow | Fault:
    """The row of one checkpoint, from its file if that holds it, or why there is none."""
    optimizer, card = load_optimizer(checkpoint)
    origin = results.RowOrigin(LAYOUT, fingerprint(optimizer), comparison.tuned)
    found = read_if_sound(stored, results.StoredRow, "analyzing again")
    if found is not None and found.origin == origin:
        return found.row
    try:
        row, _ = _measured(optimizer, card.meta_step, comparison)
    except UserError as error:
        return Fault(card.meta_step, str(error))
    write_result(stored, results.StoredRow(origin, row))
    return row


def _measured(
    optimizer: ComponentwiseRNN, meta_step: int, comparison: MomentumComparison
) -> tuple[CheckpointRow, results.StageCurves]:
    """A checkpoint's row, and the loss curves that Fig. 7c shows.

    Raises `UserError` where it has no fixed point.
    """
    problems, tuned = comparison.validation, comparison.tuned
    point = comparison.operating_point(optimizer)
    full, one_mode = comparison.learned_curves(optimizer), comparison.one_mode_curves(point)
    curves = results.StageCurves(
        full=problems.mean_curve(full),
        one_mode=problems.mean_curve(one_mode),
        tuned=problems.mean_curve(comparison.momentum_curves(tuned.alpha, tuned.beta)),
    )
    modes, found = point.modes, point.fixed_points
    row = CheckpointRow(
        **vars(comparison.row(meta_step, point, full, one_mode)),
        fixed_point=results.FixedPointRow(
            candidates=len(point.candidates.status),
            converged=int(np.sum(point.candidates.converged)),
            distinct=len(found.status),
            residual=float(found.residual[0]),
            error_estimate=float(found.error_estimate[0]),
            spectral_radius=float(found.spectral_radius[0]),
            drift=float(modes.drift),
        ),
        modes=results.ModesRow(
            beta=modes.beta,
            alpha=modes.alpha,
            delayed=modes.delayed.real,
            start=transients(modes, point.h0),
            gain=modes.gain,
            timescale=modes.timescale,
            feedthrough=float(modes.feedthrough),
            condition_number=float(modes.condition_number),
            degenerate=bool(modes.degenerate),
            impulse_mismatch=float(impulse_mismatch(modes.linearization, modes)),
        ),
        curves=results.CurvesRow(_rounded(curves.full.mean), _rounded(curves.one_mode.mean)),
    )
    return row, curves


def _judged(checkpoint: Path, fresh: MomentumComparison, other: bool) -> results.JudgedStage:
    """The momentum stage on fresh problems; ``other``: it is of another training."""
    optimizer, card = load_optimizer(checkpoint)
    row, curves = _measured(optimizer, card.meta_step, fresh)
    return results.JudgedStage(
        training=f"{describe(card.architecture)}, seed {card.seed}" if other else "",
        row=row,
        tuned=fresh.tuned,
        strain=StageThresholds().strain(row, fresh.tuned),
        curves=curves,
    )


def _linear_accounts(
    checkpoints: dict[str, Path], fresh: MomentumComparison
) -> dict[str, LinearAccount]:
    """What linear dynamics account for, of those checkpoints that have a fixed point."""
    baseline = momentum(fresh.tuned.alpha, fresh.tuned.beta)
    found = {}
    for name, path in checkpoints.items():
        optimizer, _ = load_optimizer(path)
        with contextlib.suppress(UserError):
            point = fresh.operating_point(optimizer)
            found[name] = linear_account(fresh.validation, optimizer, point, baseline)
    return found


def explore_task(run: RunFolder, task: Task, held_out: HeldOut, few: HeldOut) -> ExplorerResult:
    """What lets a reader choose modes of a task's analysed optimizer and see the loss.

    Stored in the task's ``explorer.json``. For a loss of `LOSSES`: the validation
    ``problems`` of ``held_out``, on which the page itself can run any choice.
    For others: the loss curves of some ``choices`` of modes at the momentum stage and
    the last one, on the (fewer) problems of ``few``. Needs the task's analysis; raises
    `UserError` where that is missing.
    """
    folder, described = run.task_folder(task), describe_task(task)
    analysis = read_task_result(folder / SUMMARY, AnalysisResult)
    loaded = {
        step: load_trained(run, task, analysis_path(folder / CHECKPOINTS, step))[0]
        for step in sorted({analysis.momentum_stage, analysis.final})
    }
    inputs = results.ExplorerInputs(
        task=described.name,
        task_options=described.options,
        settings=[held_out, few],
        checkpoints=[fingerprint(optimizer) for optimizer in loaded.values()],
    )
    done = stored_result(folder / EXPLORER, ExplorerResult, inputs)
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
    write_result(folder / EXPLORER, result)
    return result


def _problems(problems: Problem) -> results.ExplorerProblems:
    """The loss's name, and for each problem its start and what its loss depends on."""
    data = [jax.tree.leaves(problems.params)[0], *problems.data]
    start, *rest = ([_rounded(row).tolist() for row in np.asarray(leaf)] for leaf in data)
    return results.ExplorerProblems(LOSSES[problems.loss_fn], np.array(start), rest)


def _choices(
    validation: ProblemSet, loaded: dict[int, ComponentwiseRNN]
) -> dict[str, results.ModeSets]:
    """At each stage: sets of modes, with their losses and the whole optimizer's."""
    full, point_of = validation.curves(ComponentwiseRNN.as_optax), operating_points(validation)
    found = {}
    for meta_step, optimizer in loaded.items():
        point = point_of(optimizer)
        sets = choices(point.modes)
        curves = map(_rounded, kept_modes_curves(validation, point, list(sets.values())))
        pairs = zip(sets.items(), curves, strict=True)
        found[str(meta_step)] = results.ModeSets(
            full=_rounded(validation.mean_curve(full(optimizer)).mean),
            sets=[results.ModeSet(name, modes, curve) for (name, modes), curve in pairs],
        )
    return found


def _rounded(values: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """``values`` to the digits that a drawing or a calculation elsewhere needs."""
    short = [float(f"{value:.{DIGITS}g}") for value in np.ravel(values)]
    return np.reshape(short, np.shape(values))
