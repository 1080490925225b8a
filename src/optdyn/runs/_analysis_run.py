"""Every checkpoint of a run taken apart, kept in the run folder."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from optdyn.dynamics import impulse_mismatch, optimal_momentum, transients
from optdyn.dynamics._operating_point import OperatingPoint
from optdyn.errors import UserError
from optdyn.evaluation import VALIDATION_STREAM, ProblemSet
from optdyn.inner_loop._objective import Objective
from optdyn.mechanisms._momentum_stage import MomentumComparison, StageRow, nearest_to
from optdyn.optimizers._componentwise_rnn import ComponentwiseRNN
from optdyn.runs import _forms as forms
from optdyn.runs._checkpoints import (
    analysis_checkpoints,
    analysis_path,
    fingerprint,
    load_optimizer,
)
from optdyn.runs._files import (
    read_signed_json,
    to_plain,
    write_signed_json,
)
from optdyn.runs._forms import require_form
from optdyn.runs._progress import progress
from optdyn.runs._run_folder import RunFolder
from optdyn.runs._training_run import CHECKPOINTS, load_trained
from optdyn.runs._tuning_run import load_tuned
from optdyn.search import best
from optdyn.tasks import Task, make_task

if TYPE_CHECKING:
    from jaxtyping import Complex, Float

    from optdyn.dynamics import Eigenmodes

ANALYSIS = "analysis"
SUMMARY = "analysis.json"
LAYOUT = 2
"""Of a stored row; raised when rows gain a part, so that older ones are measured again."""
CURVE_DIGITS = 6

CHECKPOINT = forms.fields(
    meta_step=forms.count,
    **dict.fromkeys(("alpha", "beta"), forms.known),
    **dict.fromkeys(
        ("meta_objective", "gain_gap", "rate_ratio", "momentum_ratio", "deviation"), forms.number
    ),
    fixed_point=forms.fields(
        **dict.fromkeys(("candidates", "converged", "distinct"), forms.count),
        **dict.fromkeys(("error_estimate", "drift"), forms.number),
    ),
    modes=forms.fields(
        **dict.fromkeys(("beta", "alpha", "start"), forms.numbers("modes", 2)),
        **dict.fromkeys(("delayed", "gain"), forms.numbers("modes")),
        feedthrough=forms.number,
        degenerate=forms.flag,
    ),
    curves=forms.fields(full=forms.numbers("steps"), one_mode=forms.numbers("steps")),
)
"""Of a stored row."""
CURVE = forms.fields(mean=forms.numbers("steps"), standard_error=forms.numbers("steps"))
ANALYSED = forms.fields(
    inputs=forms.fields(
        task=forms.text,
        settings=forms.fields(num_problems=forms.count, normalization=forms.text),
        checkpoints=forms.table(forms.text),
    ),
    tuned=forms.fields(alpha=forms.known, beta=forms.known, meta_objective=forms.number),
    theory=forms.or_null(forms.fields(alpha=forms.known, beta=forms.known)),
    momentum_stage=forms.count,
    final=forms.count,
    curves=forms.fields(full=CURVE, one_mode=CURVE, tuned=CURVE),
    checkpoints=forms.rows(CHECKPOINT),
)
"""Of the summary."""


@dataclasses.dataclass(frozen=True)
class AnalysisSettings:
    """On which validation problems checkpoints are judged (see `ProblemSet`)."""

    seed: int
    num_problems: int = 64
    num_steps: int = 200
    normalization: str = "none"

    def problems(self, task: Task) -> ProblemSet:
        """The validation problems of ``task``."""
        return ProblemSet(
            task,
            seed=self.seed,
            number=self.num_problems,
            objective=Objective(self.num_steps, self.normalization),
            stream=VALIDATION_STREAM,
        )


def analyze_task(
    run: RunFolder, task_name: str, task_options: dict[str, Any], settings: AnalysisSettings
) -> dict[str, Any]:
    """Analyse each analysis checkpoint of a task and name the momentum stage.

    Needs the task's trained checkpoints and its tuned momentum. One file a
    checkpoint is kept under ``analysis/``, so that an interrupted analysis goes
    on; ``analysis.json``, which is returned, holds them all with the tuned and
    the theoretical momentum and the loss curves at the momentum stage. A checkpoint
    with no fixed point to linearise at is listed under ``faults`` instead.

    Raises `UserError` when training or tuning has not been done here, and for
    settings that differ from the folder's.
    """
    task = make_task(task_name, **task_options)
    folder = run.task_folder(task_name)
    checkpoints = analysis_checkpoints(folder / CHECKPOINTS)
    if not checkpoints:
        raise UserError(f"--out: {folder} has no checkpoints to analyze (run optdyn train first)")
    tuned_point = best(load_tuned(folder, "momentum")).hyperparameters
    run.settle(f"analyze/{task_name}", {"task_options": task_options, **vars(settings)})

    inputs = {
        "layout": LAYOUT,
        "task": task_name,
        "settings": to_plain(settings),
        "momentum": tuned_point,
        "checkpoints": {
            path.name: fingerprint(load_trained(run, task_name, path)[0]) for path in checkpoints
        },
    }
    with contextlib.suppress(UserError):
        done = read_analysis(folder / SUMMARY)
        if done["inputs"] == inputs:
            return done

    comparison = MomentumComparison(settings.problems(task), **tuned_point)
    tuned = comparison.tuned
    rows, faults = [], []
    with progress(f"analyzing {task_name}", len(checkpoints)) as advance:
        for count, path in enumerate(checkpoints, start=1):
            optimizer, card = load_optimizer(path)
            kept = folder / ANALYSIS / f"{path.stem}.json"
            origin = {
                "layout": LAYOUT,
                "optimizer": fingerprint(optimizer),
                "tuned": to_plain(tuned),
            }
            row = _kept_row(kept, origin)
            if row is None:
                try:
                    point = comparison.operating_point(optimizer)
                except UserError as error:
                    faults.append({"meta_step": card.meta_step, "fault": str(error)})
                    continue
                losses = comparison.learned_curves(optimizer), comparison.one_mode_curves(point)
                stage = comparison.row(card.meta_step, point, *losses)
                curves = _mean_curves(*losses, comparison.validation)
                row = to_plain({**_row(stage, point), "curves": curves})
                write_signed_json(kept, {"origin": origin, "row": row})
            rows.append(row)
            advance(count, f"meta-step {card.meta_step}: {row['meta_objective'] or np.inf:.4g}")

    if not rows:
        raise UserError(f"{task_name}: no checkpoint could be analyzed ({faults[0]['fault']})")
    chosen = nearest_to(
        tuned.meta_objective,
        [row["meta_step"] for row in rows],
        [row["meta_objective"] or np.inf for row in rows],
    )
    optimizer, _ = load_optimizer(analysis_path(folder / CHECKPOINTS, chosen))
    summary = {
        "inputs": inputs,
        "tuned": tuned,
        "theory": _theory(task),
        "momentum_stage": chosen,
        "final": rows[-1]["meta_step"],
        "curves": _curves(optimizer, comparison),
        "checkpoints": rows,
        "faults": faults,
    }
    write_signed_json(folder / SUMMARY, summary)
    return to_plain(summary)


def read_analysis(path: Path) -> dict[str, Any]:
    """A task's summary; raises `UserError` for one that is missing, damaged or of another form."""
    summary = read_signed_json(path)
    require_form(path, summary, ANALYSED)
    require_own_task(path, summary)
    steps = [row["meta_step"] for row in summary["checkpoints"]]
    for name in ("momentum_stage", "final"):
        if summary[name] not in steps:
            raise UserError(f"{path}: {name}: {summary[name]} is not among its checkpoints")
    return summary


def require_own_task(path: Path, summary: dict[str, Any]) -> None:
    """Raise `UserError` unless what is kept at ``path`` is of the task whose folder that is in."""
    task = summary["inputs"]["task"]
    if task != path.parent.name:
        raise UserError(f"{path}: is of task {task!r}, not of {path.parent.name!r}")


def _row(stage: StageRow, point: OperatingPoint) -> dict[str, Any]:
    found, modes = point.fixed_points, point.modes
    return {
        **vars(stage),
        "fixed_point": {
            "candidates": len(point.candidates.status),
            "converged": int(np.sum(point.candidates.converged)),
            "distinct": len(found.status),
            "residual": found.residual[0],
            "error_estimate": found.error_estimate[0],
            "spectral_radius": found.spectral_radius[0],
            "drift": modes.drift,
        },
        "modes": {
            **_complex_columns(modes),
            "delayed": modes.delayed.real,
            "start": _pairs(transients(modes, point.h0)),
            "gain": modes.gain,
            "timescale": modes.timescale,
            "feedthrough": modes.feedthrough,
            "condition_number": modes.condition_number,
            "degenerate": modes.degenerate,
            "impulse_mismatch": impulse_mismatch(modes.linearization, modes),
        },
    }


def _complex_columns(modes: Eigenmodes) -> dict[str, Any]:
    return {"beta": _pairs(modes.beta), "alpha": _pairs(modes.alpha)}


def _pairs(values: Complex[np.ndarray, " N"]) -> Float[np.ndarray, "N 2"]:
    return np.stack([values.real, values.imag], axis=1)


def _mean_curves(
    full: Float[np.ndarray, "problems steps"],
    one_mode: Float[np.ndarray, "problems steps"],
    validation: ProblemSet,
) -> dict[str, list[float]]:
    """The mean losses along the inner loop, to the digits that a drawing needs."""
    means = {"full": full, "one_mode": one_mode}
    return {
        name: [float(f"{v:.{CURVE_DIGITS}g}") for v in validation.mean_curve(losses).mean]
        for name, losses in means.items()
    }


def _kept_row(path: Path, origin: dict[str, Any]) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        kept = read_signed_json(path)
        if kept.get("origin") != origin:
            return None
        require_form(path, kept, forms.fields(row=CHECKPOINT))
    except UserError as error:
        print(f"analyzing again: {error}", flush=True)
        return None
    return kept["row"]


def _theory(task: Task) -> dict[str, float] | None:
    """Momentum's optimum for the task's range of curvatures, where it states one."""
    curvatures = getattr(task, "curvature_range", None)
    if curvatures is None:
        return None
    alpha, beta = optimal_momentum(*curvatures)
    return {"alpha": alpha, "beta": beta}


def _curves(optimizer: ComponentwiseRNN, comparison: MomentumComparison) -> dict[str, Any]:
    """Mean ± standard error of the loss curves that Fig. 7c shows."""
    losses = {
        "full": comparison.learned_curves(optimizer),
        "one_mode": comparison.one_mode_curves(comparison.operating_point(optimizer)),
        "tuned": comparison.momentum_curves(comparison.tuned.alpha, comparison.tuned.beta),
    }
    validation = comparison.validation
    return {name: vars(validation.mean_curve(curves)) for name, curves in losses.items()}
