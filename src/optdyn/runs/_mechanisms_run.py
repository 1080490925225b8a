"""A task's learned optimizer explained: its mechanisms, and its modes through meta-training."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np

from optdyn.dynamics import StepMap, step_map
from optdyn.dynamics._operating_point import OperatingPoint, operating_point
from optdyn.dynamics._tracking import Tracks, track_modes
from optdyn.errors import UserError
from optdyn.mechanisms._measurement import QUANTILES, Mechanisms, measure, visit
from optdyn.mechanisms._nonlinear import adam_adaptation, rmsprop_adaptation
from optdyn.optimizers._componentwise_rnn import ComponentwiseRNN
from optdyn.runs import _forms as forms
from optdyn.runs._analysis_run import AnalysisSettings, require_own_task
from optdyn.runs._checkpoints import analysis_checkpoints, fingerprint
from optdyn.runs._files import read_signed_json, to_plain, write_signed_json
from optdyn.runs._forms import Form, require_form
from optdyn.runs._progress import progress
from optdyn.runs._run_folder import RunFolder
from optdyn.runs._training_run import CHECKPOINTS, load_trained
from optdyn.runs._tuning_run import load_tuned, table_path
from optdyn.search import best
from optdyn.tasks import make_task

SUMMARY = "mechanisms.json"
LAYOUT = 2
"""Of the stored mechanisms; raised when they gain a part, so that older ones are made again."""
TRACKED = 24
"""Checkpoints whose modes are matched, evenly spread over the stored ones."""
TRACKS_KEPT = 8
"""Modes whose tracks are kept: the first of `Tracks`' columns."""
HISTORIES = 8

SPREAD = forms.fields(mean=forms.number, standard_error=forms.number)
EXPLAINED = forms.fields(
    inputs=forms.fields(task=forms.text),
    meta_step=forms.count,
    mechanisms=forms.fields(
        density=forms.fields(
            **dict.fromkeys(("at", "quantiles"), forms.numbers("quantiles")),
            edges=forms.numbers("bins+1"),
            count=forms.numbers("bins"),
        ),
        update=forms.fields(
            **dict.fromkeys(("gradient", "start", "rest"), forms.numbers("sizes")),
            threshold_start=forms.number,
            rate_start=forms.number,
            largest_part=SPREAD,
        ),
        schedule=forms.fields(
            rate=forms.numbers("steps"),
            on_problems=forms.fields(
                mean=forms.numbers("steps"), standard_error=forms.numbers("steps")
            ),
        ),
        adaptation=forms.fields(
            **dict.fromkeys(("gradient", "rate", "slope"), forms.numbers("constants")),
            ratio=SPREAD,
            slope_ratio=SPREAD,
        ),
        portrait=forms.fields(
            **dict.fromkeys(("explained", "rest", "start"), forms.numbers("components")),
            trajectories=forms.numbers("problems", "steps", "components"),
            fixed_curve=forms.numbers("constants", "components"),
            gradient=forms.numbers("constants"),
        ),
        path=forms.fields(
            step=forms.numbers("stops"),
            gradient=forms.numbers("gradients"),
            update=forms.numbers("stops", "gradients"),
            portrait=forms.numbers("stops", "components"),
        ),
        linear=forms.fields(
            impulse=forms.numbers("impulses"),
            frequency=forms.numbers("frequencies"),
            response=forms.numbers("frequencies"),
        ),
    ),
    closed_forms=forms.table(forms.numbers("positive constants")),
    tracks=forms.fields(
        meta_step=forms.numbers("checkpoints"),
        **dict.fromkeys(("beta", "alpha"), forms.numbers("checkpoints", "tracks", 2)),
        gain=forms.numbers("checkpoints", "tracks"),
    ),
)
"""Of the summary."""


def explain_task(
    run: RunFolder, task_name: str, task_options: dict[str, Any], settings: AnalysisSettings
) -> dict[str, Any]:
    """The mechanisms of a task's last checkpoint that has a fixed point, and its modes' tracks.

    Kept in the task's ``mechanisms.json``, which is made again only where
    checkpoints, tuned baselines or settings have changed. Raises `UserError` when
    nothing has been trained here or no checkpoint has a fixed point.
    """
    folder = run.task_folder(task_name)
    checkpoints = analysis_checkpoints(folder / CHECKPOINTS)
    if not checkpoints:
        raise UserError(f"--out: {folder} has no checkpoints to explain (run optdyn train first)")
    spread = np.linspace(0, len(checkpoints) - 1, min(TRACKED, len(checkpoints)))
    places = np.unique(spread.round().astype(int))
    loaded = [load_trained(run, task_name, checkpoints[i]) for i in places]
    baselines = {
        name: best(load_tuned(folder, name)).hyperparameters
        for name in ("rmsprop", "adam")
        if table_path(folder, name).exists()
    }
    inputs = to_plain(
        {
            "layout": LAYOUT,
            "task": task_name,
            "task_options": task_options,
            "settings": settings,
            "baselines": baselines,
            "checkpoints": [fingerprint(optimizer) for optimizer, _ in loaded],
        }
    )
    path = folder / SUMMARY
    done = kept_result(path, inputs, EXPLAINED)
    if done is not None:
        return done

    validation = settings.problems(make_task(task_name, **task_options))
    histories = validation.gradient_histories(ComponentwiseRNN.as_optax, HISTORIES)
    step = step_map(loaded[-1][0])
    points: list[tuple[int, OperatingPoint]] = []
    explained = loaded[-1]
    with progress(f"explaining the optimizer of {task_name}", len(loaded)) as advance:
        for count, (optimizer, card) in enumerate(loaded, start=1):
            with contextlib.suppress(UserError):  # no fixed point: this checkpoint has no modes
                here = step.with_parameters(optimizer)
                points.append((card.meta_step, operating_point(here, histories(optimizer))))
                explained = (optimizer, card)
            advance(count, f"modes at meta-step {card.meta_step}")
    if not points:
        raise UserError(f"{task_name}: no checkpoint has a fixed point to explain it at")
    visited = visit(explained[0].as_optax(), validation.problems, settings.num_steps)
    mechanisms = measure(step.with_parameters(explained[0]), points[-1][1].modes, visited)
    result = {
        "inputs": inputs,
        "meta_step": points[-1][0],
        "mechanisms": _plain(mechanisms, step),
        "closed_forms": _closed_forms(mechanisms, baselines),
        "tracks": _tracks(points),
    }
    write_signed_json(path, result)
    return to_plain(result)


def read_mechanisms(path: Path) -> dict[str, Any]:
    """A task's summary; raises `UserError` for one that is missing, damaged or of another form."""
    summary = read_signed_json(path)
    require_form(path, summary, EXPLAINED)
    require_own_task(path, summary)
    return summary


def kept_result(path: Path, inputs: dict[str, Any], form: Form) -> dict[str, Any] | None:
    """The signed result in ``path`` if it was made from these ``inputs``, else None."""
    with contextlib.suppress(UserError):
        done = read_signed_json(path)
        require_form(path, done, form)
        if done.get("inputs") == inputs:
            return done
    return None


def _plain(mechanisms: Mechanisms, step: StepMap) -> dict[str, Any]:
    start, rest = mechanisms.update_start, mechanisms.update_rest
    adapted = mechanisms.adaptation
    return {
        "density": {"at": QUANTILES, **vars(mechanisms.density)},
        "update": {
            "gradient": start.gradient,
            "start": start.response,
            "rest": rest.response,
            "threshold_start": start.threshold,
            "threshold_rest": rest.threshold,
            "rate_start": start.rate,
            "rate_rest": rest.rate,
            "largest_part": mechanisms.largest_part,
        },
        "schedule": {
            "rate": mechanisms.schedule,
            "on_problems": dict(
                zip(("mean", "standard_error"), mechanisms.schedule_on_problems, strict=True)
            ),
        },
        "adaptation": {
            "gradient": adapted.gradient,
            "rate": adapted.rate,
            "slope": adapted.slope,
            "ratio": mechanisms.adaptation_ratio,
            "slope_ratio": mechanisms.slope_ratio,
        },
        "portrait": {
            "explained": mechanisms.portrait.explained,
            "trajectories": mechanisms.trajectories,
            "fixed_curve": mechanisms.fixed_curve,
            "gradient": adapted.gradient,
            "rest": mechanisms.rest,
            "start": mechanisms.portrait.project(step.h),
        },
        "path": mechanisms.path,
        "linear": {
            "impulse": mechanisms.impulse,
            "frequency": mechanisms.frequency,
            "response": mechanisms.response,
        },
    }


def _closed_forms(mechanisms: Mechanisms, baselines: dict[str, dict[str, float]]) -> dict[str, Any]:
    """The adaptation curves of the tuned RMSProp and Adam at positive gradients."""
    g = mechanisms.adaptation.gradient
    g = g[g > 0]
    curves: dict[str, Any] = {"gradient": g}
    if "rmsprop" in baselines:
        curves["rmsprop"] = rmsprop_adaptation(g, **baselines["rmsprop"])
    if "adam" in baselines:
        curves["adam"] = adam_adaptation(g, **baselines["adam"])
    return curves


def _tracks(points: list[tuple[int, OperatingPoint]]) -> dict[str, Any]:
    tracks: Tracks = track_modes([point.modes for _, point in points])
    kept = slice(0, TRACKS_KEPT)
    beta, alpha = tracks.beta[:, kept], tracks.alpha[:, kept]
    return {
        "meta_step": [meta_step for meta_step, _ in points],
        "beta": np.stack([beta.real, beta.imag], axis=-1),
        "alpha": np.stack([alpha.real, alpha.imag], axis=-1),
        "gain": tracks.gain[:, kept],
        "timescale": tracks.timescale[:, kept],
        "match_cost": tracks.step[:, kept],
    }
