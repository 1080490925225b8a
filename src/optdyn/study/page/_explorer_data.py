"""The numbers of a run folder that the report's explorer shows, as one JSON object."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from optdyn.errors import UserError
from optdyn.figures._style import readable
from optdyn.runs._analysis_run import SUMMARY as ANALYSIS
from optdyn.runs._analysis_run import read_analysis
from optdyn.runs._explorer_run import read_explorer
from optdyn.runs._mechanisms_run import SUMMARY as MECHANISMS
from optdyn.runs._mechanisms_run import read_mechanisms
from optdyn.runs._results import CheckpointRow
from optdyn.runs._tuning_run import load_tables
from optdyn.search import SearchTable, best

STAGES_SHOWN = 25
"""Checkpoints on the slider, evenly spread over the analysed ones, to keep the page small."""
DIGITS, SYSTEM_DIGITS = 4, 7
"""Significant digits of what is drawn, and of what the page calculates with."""
ZERO = ord("0")


def explorer_data(run: Path, tasks: list[str]) -> dict[str, Any]:
    """What the explorer shows of each of ``tasks`` that has something to show.

    A task's part that is missing or damaged is null, and ``missing`` says why.
    """
    # A ledger may name anything; only names of the run's own folders are followed.
    own = {path.name for path in run.iterdir() if path.is_dir()}
    found = [_task(run / task, task) for task in tasks if task in own]
    return {"tasks": [task for task in found if task is not None]}


def as_script(data: dict[str, Any]) -> str:
    """``data`` as the text of a script element, which no text in it can end."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")


def _task(folder: Path, name: str) -> dict[str, Any] | None:
    parts: dict[str, Callable[[Path], Any]] = {
        "analysis": _analysis,
        "keep": _keep,
        "mechanisms": _mechanisms,
        "searches": _searches,
    }
    shown: dict[str, Any] = {}
    missing = {}
    for part, read in parts.items():
        try:
            shown[part] = read(folder)
        except UserError as error:
            shown[part], missing[part] = None, str(error)
    if all(value is None for value in shown.values()):
        return None
    return {"name": name, "title": readable(name), **shown, "missing": missing}


def _require(folder: Path, name: str, what: str) -> None:
    if not (folder / name).exists():
        raise UserError(f"{what} (no {folder.name}/{name})")


def _analysis(folder: Path) -> dict[str, Any]:
    """Checkpoints with their modes and losses, and momentum's."""
    _require(folder, ANALYSIS, "this task's optimizer has not been analysed")
    summary = read_analysis(folder / ANALYSIS)
    rows = summary.checkpoints
    steps = [row.meta_step for row in rows]
    spread = np.linspace(0, len(rows) - 1, min(STAGES_SHOWN, len(rows))).round().astype(int)
    chosen = sorted({*spread.tolist(), steps.index(summary.momentum_stage)})
    return {
        "relative": summary.inputs.settings.objective.normalization == "first",
        "problems": summary.inputs.settings.num_problems,
        "tuned": _few(vars(summary.tuned)),
        "tuned_curve": _few(summary.curves.tuned.mean),
        "theory": summary.theory and _few(vars(summary.theory)),
        "momentum_stage": summary.momentum_stage,
        "training": {
            "meta_step": steps,
            "meta_objective": _few([row.meta_objective for row in rows]),
        },
        "stages": [_stage(rows[index]) for index in chosen],
    }


def _stage(row: CheckpointRow) -> dict[str, Any]:
    modes = row.modes
    pairs = {
        name: [_few(part, SYSTEM_DIGITS) for part in (values.real, values.imag)]
        for name, values in (("beta", modes.beta), ("alpha", modes.alpha), ("start", modes.start))
    }
    return {
        "meta_step": row.meta_step,
        "meta_objective": _few(row.meta_objective),
        "deviation": _few(row.deviation),
        **pairs,
        "delayed": _few(modes.delayed, SYSTEM_DIGITS),
        "feedthrough": _few(modes.feedthrough, SYSTEM_DIGITS),
        "gain": _few(modes.gain, SYSTEM_DIGITS),
        "drift": _few(row.fixed_point.drift, SYSTEM_DIGITS),
        "degenerate": modes.degenerate,
        "full": _few(row.curves.full),
        "one_mode": _few(row.curves.one_mode),
    }


def _keep(folder: Path) -> dict[str, Any]:
    """Problems to run sets of modes on, or the losses of some sets."""
    found = dataclasses.asdict(read_explorer(folder))
    found.pop("inputs")
    present = {name: value for name, value in found.items() if value is not None}
    return _few(present, SYSTEM_DIGITS)


def _mechanisms(folder: Path) -> dict[str, Any]:
    """The portrait of the states, and the update along the autonomous path."""
    _require(folder, MECHANISMS, "this task's mechanisms have not been measured")
    told = read_mechanisms(folder / MECHANISMS)
    found = told.mechanisms
    return {
        "meta_step": told.meta_step,
        "portrait": _few(vars(found.portrait), DIGITS - 1),
        "path": _few(vars(found.path)),
        "rate": _few(found.schedule.rate, SYSTEM_DIGITS),
        "density": _few({"edges": found.density.edges, "count": found.density.count}),
    }


def _searches(folder: Path) -> list[dict[str, Any]]:
    """Every combination of each search (see `_search`)."""
    tables = load_tables(folder)
    if not tables:
        raise UserError("no baseline has been tuned on this task")
    return [_search(name, table) for name, table in tables.items()]


def _search(name: str, table: SearchTable) -> dict[str, Any]:
    """A search: for each axis a text whose character i, less `ZERO`, is row i's index into it."""
    selected = best(table)
    return {
        "optimizer": name,
        "title": readable(name),
        "axes": {axis.name: _few(axis.values(), SYSTEM_DIGITS) for axis in table.grid.axes},
        "index": ["".join(chr(ZERO + i) for i in axis) for axis in table.indices.T.tolist()],
        "score": _few(table.scores),
        "best": selected.row,
        "rescore": _few(selected.score),
    }


def _few(value: Any, digits: int = DIGITS) -> Any:
    """``value`` with every float to ``digits`` digits, and null for what is not finite."""
    if isinstance(value, dict):
        return {key: _few(item, digits) for key, item in value.items()}
    if isinstance(value, list):
        return [_few(item, digits) for item in value]
    if hasattr(value, "tolist"):
        return _few(value.tolist(), digits)
    if not isinstance(value, float):
        return value
    if not np.isfinite(value):
        return None
    short = float(f"{value:.{digits}g}")
    return int(short) if short.is_integer() and abs(short) < 1e6 else short
