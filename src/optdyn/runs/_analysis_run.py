"""Every checkpoint of a run taken apart, in its run folder."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from optdyn.distillation import LinearAccount, linear_account
from optdyn.dynamics import impulse_mismatch, optimal_momentum, transients
from optdyn.dynamics._operating_point import OperatingPoint
from optdyn.errors import UserError
from optdyn.evaluation import EVALUATION_STREAM, VALIDATION_STREAM
from optdyn.mechanisms._momentum_stage import MomentumComparison, StageThresholds
from optdyn.optimizers._baselines import momentum
from optdyn.optimizers._componentwise_rnn import ComponentwiseRNN
from optdyn.runs._cards import describe
from optdyn.runs._checkpoints import (
    analysis_checkpoints,
    analysis_path,
    fingerprint,
    load_optimizer,
)
from optdyn.runs._progress import progress
from optdyn.runs._results import (
    AnalysisInputs,
    AnalysisResult,
    CheckpointRow,
    CurvesRow,
    Fault,
    FixedPointRow,
    HeldOut,
    JudgedStage,
    ModesRow,
    Momentum,
    RowOrigin,
    StageCurves,
    StoredRow,
)
from optdyn.runs._run_folder import RunFolder, read_task_result
from optdyn.runs._store import read_if_sound, read_result, write_result
from optdyn.runs._training_run import CHECKPOINTS, load_trained
from optdyn.runs._tuning_run import load_tuned
from optdyn.search import best
from optdyn.tasks import Task

if TYPE_CHECKING:
    from jaxtyping import Float

ANALYSIS = "analysis"
SUMMARY = "analysis.json"
LAYOUT = 3
"""Of a stored row; raised when rows gain a part, so that older ones are measured again."""
CURVE_DIGITS = 6


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
    checkpoints = analysis_checkpoints(folder / CHECKPOINTS)
    if not checkpoints:
        raise UserError(f"--out: {folder} has no checkpoints to analyze (run optdyn train first)")
    tuned_point = best(load_tuned(folder, "momentum")).hyperparameters
    name = run.settle_work("analyze", task, held_out)
    inputs = AnalysisInputs(
        layout=LAYOUT,
        task=name,
        settings=held_out,
        momentum=tuned_point,
        checkpoints={
            path.name: fingerprint(load_trained(run, task, path)[0]) for path in checkpoints
        },
        stage=None if stage is None else fingerprint(load_optimizer(stage)[0]),
    )
    with contextlib.suppress(UserError):
        done = read_analysis(folder / SUMMARY)
        if done.inputs == inputs:
            return done

    validation = held_out.problems(task, VALIDATION_STREAM)
    comparison = MomentumComparison(validation, **tuned_point)
    rows: list[CheckpointRow] = []
    faults: list[Fault] = []
    with progress(f"analyzing {name}", len(checkpoints)) as advance:
        for count, path in enumerate(checkpoints, start=1):
            try:
                row = _row(path, folder / ANALYSIS / f"{path.stem}.json", comparison)
            except _NoFixedPoint as error:
                faults.append(error.fault)
                continue
            rows.append(row)
            advance(count, f"meta-step {row.meta_step}: {row.meta_objective:.4g}")
    if not rows:
        raise UserError(f"{name}: no checkpoint could be analyzed ({faults[0].fault})")
    chosen = StageThresholds().choose(rows, comparison.tuned).meta_step
    at_stage = analysis_path(folder / CHECKPOINTS, chosen) if stage is None else stage
    fresh = MomentumComparison(held_out.problems(task, EVALUATION_STREAM), **tuned_point)
    result = AnalysisResult(
        inputs=inputs,
        tuned=comparison.tuned,
        theory=_theory(task),
        momentum_stage=chosen,
        final=rows[-1].meta_step,
        judged=_judged(at_stage, fresh, other=stage is not None),
        linear=_linear_accounts({"stage": at_stage, "final": checkpoints[-1]}, fresh),
        checkpoints=rows,
        faults=faults,
    )
    write_result(folder / SUMMARY, result)
    return result


def read_analysis(path: Path) -> AnalysisResult:
    """A task's summary; raises `UserError` for one that is missing, damaged or of another form."""
    return read_task_result(path, AnalysisResult)


class _NoFixedPoint(Exception):
    """A checkpoint has no modes to look at."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.fault)
        self.fault = fault


def _row(checkpoint: Path, stored: Path, comparison: MomentumComparison) -> CheckpointRow:
    """The row of one checkpoint, from its file if that holds it. Raises `_NoFixedPoint`."""
    optimizer, card = load_optimizer(checkpoint)
    origin = RowOrigin(LAYOUT, fingerprint(optimizer), comparison.tuned)
    found = read_if_sound(stored, lambda path: read_result(path, StoredRow), "analyzing again")
    if found is not None and found.origin == origin:
        return found.row
    try:
        row, _ = _measured(optimizer, card.meta_step, comparison)
    except UserError as error:
        raise _NoFixedPoint(Fault(card.meta_step, str(error))) from None
    write_result(stored, StoredRow(origin, row))
    return row


def _measured(
    optimizer: ComponentwiseRNN, meta_step: int, comparison: MomentumComparison
) -> tuple[CheckpointRow, StageCurves]:
    """A checkpoint's row, and the loss curves that Fig. 7c shows.

    Raises `UserError` where it has no fixed point.
    """
    point, problems, tuned = (
        comparison.operating_point(optimizer), comparison.validation, comparison.tuned
    )  # fmt: skip
    full, one_mode = comparison.learned_curves(optimizer), comparison.one_mode_curves(point)
    curves = StageCurves(
        full=problems.mean_curve(full),
        one_mode=problems.mean_curve(one_mode),
        tuned=problems.mean_curve(comparison.momentum_curves(tuned.alpha, tuned.beta)),
    )
    row = CheckpointRow(
        **vars(comparison.row(meta_step, point, full, one_mode)),
        fixed_point=_fixed_point(point),
        modes=_modes(point),
        curves=CurvesRow(_rounded(curves.full.mean), _rounded(curves.one_mode.mean)),
    )
    return row, curves


def _judged(checkpoint: Path, fresh: MomentumComparison, other: bool) -> JudgedStage:
    """The momentum stage on fresh problems; ``other``: it is of another training."""
    optimizer, card = load_optimizer(checkpoint)
    row, curves = _measured(optimizer, card.meta_step, fresh)
    return JudgedStage(
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


def _fixed_point(point: OperatingPoint) -> FixedPointRow:
    found = point.fixed_points
    return FixedPointRow(
        candidates=len(point.candidates.status),
        converged=int(np.sum(point.candidates.converged)),
        distinct=len(found.status),
        residual=float(found.residual[0]),
        error_estimate=float(found.error_estimate[0]),
        spectral_radius=float(found.spectral_radius[0]),
        drift=float(point.modes.drift),
    )


def _modes(point: OperatingPoint) -> ModesRow:
    modes = point.modes
    return ModesRow(
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
    )


def _rounded(curve: Float[np.ndarray, " steps"]) -> Float[np.ndarray, " steps"]:
    """A curve to the digits that a drawing needs."""
    return np.array([float(f"{value:.{CURVE_DIGITS}g}") for value in curve])


def _theory(task: Task) -> Momentum | None:
    """Momentum's optimum for the task's range of curvatures, where it states one."""
    curvatures = getattr(task, "curvature_range", None)
    return None if curvatures is None else Momentum(*optimal_momentum(*curvatures))
