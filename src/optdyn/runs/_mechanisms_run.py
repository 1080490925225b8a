"""A task's learned optimizer explained: its mechanisms, and its modes through meta-training."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Complex128, Float64

from optdyn.dynamics import step_map
from optdyn.dynamics._operating_point import OperatingPoint
from optdyn.dynamics._tracking import track_modes
from optdyn.errors import UserError
from optdyn.evaluation import VALIDATION_STREAM
from optdyn.mechanisms._measured import Mechanisms
from optdyn.mechanisms._measurement import measure, visit
from optdyn.mechanisms._momentum_stage import operating_points
from optdyn.mechanisms._nonlinear import adam_adaptation, rmsprop_adaptation
from optdyn.runs._checkpoints import fingerprint
from optdyn.runs._progress import progress
from optdyn.runs._results import HeldOut
from optdyn.runs._run_folder import RunFolder
from optdyn.runs._store import stored_result, write_result
from optdyn.runs._training_run import load_trained, require_checkpoints
from optdyn.runs._tuning_run import table_path, tuned_values
from optdyn.tasks import Task, describe_task

SUMMARY = "mechanisms.json"
LAYOUT = 3
"""Of the stored mechanisms; raised when they gain a part, so that older ones are made again."""
TRACKED = 24
"""Checkpoints whose modes are matched, evenly spread over the stored ones."""
TRACKS_STORED = 8
"""Modes whose tracks are stored: the first of `Tracks`' columns."""
CLOSED_FORMS: dict[str, Callable[..., np.ndarray]] = {
    "rmsprop": rmsprop_adaptation,
    "adam": adam_adaptation,
}
"""Adaptation of baselines, of which it is known."""


@dataclasses.dataclass(frozen=True, eq=False)
class TracksResult:
    """The leading modes followed through meta-training (see `Tracks`)."""

    meta_step: list[int]
    beta: Complex128[np.ndarray, "checkpoints tracks"]
    alpha: Complex128[np.ndarray, "checkpoints tracks"]
    gain: Float64[np.ndarray, "checkpoints tracks"]
    timescale: Float64[np.ndarray, "checkpoints tracks"]
    match_cost: list[list[float]]


@dataclasses.dataclass(frozen=True)
class MechanismsInputs:
    """What an explanation depends on; ``checkpoints``: the optimizers' fingerprints."""

    layout: int
    task: str
    task_options: dict[str, Any]
    settings: HeldOut
    baselines: dict[str, dict[str, float]]
    checkpoints: list[str]


@dataclasses.dataclass(frozen=True, eq=False)
class MechanismsResult:
    """``mechanisms.json``: the mechanisms at ``meta_step``, and tracks of modes up to there.

    ``closed_forms``: the adaptation of tuned RMSProp and Adam at positive gradients.
    """

    inputs: MechanismsInputs
    meta_step: int
    mechanisms: Mechanisms
    closed_forms: dict[str, Float64[np.ndarray, " positive"]]
    tracks: TracksResult


def explain_task(run: RunFolder, task: Task, held_out: HeldOut) -> MechanismsResult:
    """The mechanisms of a task's last checkpoint that has a fixed point, and its modes' tracks.

    Stored in the task's ``mechanisms.json``, which is made again only where
    checkpoints, tuned baselines or settings have changed. Raises `UserError` when
    nothing has been trained here or no checkpoint has a fixed point.
    """
    folder, described = run.task_folder(task), describe_task(task)
    checkpoints = require_checkpoints(folder, "explain")
    spread = np.linspace(0, len(checkpoints) - 1, min(TRACKED, len(checkpoints)))
    places = np.unique(spread.round().astype(int))
    loaded = [load_trained(run, task, checkpoints[i]) for i in places]
    inputs = MechanismsInputs(
        layout=LAYOUT,
        task=described.name,
        task_options=described.options,
        settings=held_out,
        baselines={
            name: tuned_values(folder, name)
            for name in CLOSED_FORMS
            if table_path(folder, name).exists()
        },
        checkpoints=[fingerprint(optimizer) for optimizer, _ in loaded],
    )
    path = folder / SUMMARY
    done = stored_result(path, MechanismsResult, inputs)
    if done is not None:
        return done

    validation = held_out.problems(task, VALIDATION_STREAM)
    point_of = operating_points(validation)
    points: list[tuple[int, OperatingPoint]] = []
    explained = loaded[-1][0]
    with progress(f"explaining the optimizer of {described.name}", len(loaded)) as advance:
        for count, (optimizer, card) in enumerate(loaded, start=1):
            with contextlib.suppress(UserError):  # no fixed point: this checkpoint has no modes
                points.append((card.meta_step, point_of(optimizer)))
                explained = optimizer
            advance(count, f"modes at meta-step {card.meta_step}")
    if not points:
        raise UserError(f"{described.name}: no checkpoint has a fixed point to explain it at")
    visited = visit(explained.as_optax(), validation.problems, held_out.objective.num_steps)
    mechanisms = measure(step_map(explained), points[-1][1].modes, visited)
    gradient = mechanisms.adaptation.gradient
    positive = gradient[gradient > 0]
    closed_forms = {n: CLOSED_FORMS[n](positive, **v) for n, v in inputs.baselines.items()}
    result = MechanismsResult(
        inputs=inputs,
        meta_step=points[-1][0],
        mechanisms=mechanisms,
        closed_forms={"gradient": positive, **closed_forms},
        tracks=_tracks(points),
    )
    write_result(path, result)
    return result


def _tracks(points: list[tuple[int, OperatingPoint]]) -> TracksResult:
    tracks = track_modes([point.modes for _, point in points])
    first = slice(0, TRACKS_STORED)
    return TracksResult(
        meta_step=[meta_step for meta_step, _ in points],
        beta=tracks.beta[:, first],
        alpha=tracks.alpha[:, first],
        gain=tracks.gain[:, first],
        timescale=tracks.timescale[:, first],
        match_cost=tracks.step[:, first].tolist(),
    )
