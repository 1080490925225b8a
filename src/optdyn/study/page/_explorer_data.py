"""The numbers that the page's explorer shows, as one JSON object."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from optdyn.figures._style import readable
from optdyn.runs._plain import plain
from optdyn.runs._results import AnalysisResult, CheckpointRow
from optdyn.search import SearchTable, best
from optdyn.study._measures import stage_name
from optdyn.study._results import TaskResults

STAGES_SHOWN = 25
"""Checkpoints on the slider, evenly spread over the analysed ones, to keep the page small."""
DIGITS, SYSTEM_DIGITS = 4, 7
"""Significant digits of what is drawn, and of what the page calculates with."""
ZERO = ord("0")


def explorer_data(results: Sequence[TaskResults]) -> dict[str, Any]:
    """What the explorer shows of each task that has something to show.

    A task's part that is missing is null, and ``missing`` says why.
    """
    return {"tasks": [_task(result) for result in results if any(map(result.has, PARTS))]}


def as_script(data: dict[str, Any]) -> str:
    """``data`` as the text of a script element, which no text in it can end."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")


def _task(result: TaskResults) -> dict[str, Any]:
    shown = {
        name: make(getattr(result, part)) if result.has(part) else None
        for part, (name, make) in PARTS.items()
    }
    missing = {
        name: result.faults[part] for part, (name, _) in PARTS.items() if part in result.faults
    }
    return {"name": result.task, "title": result.title, **shown, "missing": missing}


def _analysis(analysis: AnalysisResult) -> dict[str, Any]:
    """Checkpoints with their modes and losses, and momentum's."""
    rows = analysis.checkpoints
    steps = [row.meta_step for row in rows]
    spread = np.linspace(0, len(rows) - 1, min(STAGES_SHOWN, len(rows))).round().astype(int)
    chosen = sorted({*spread.tolist(), steps.index(analysis.momentum_stage)})
    settings = analysis.inputs.settings
    return {
        "relative": settings.objective.normalization == "first",
        "problems": settings.num_problems,
        "tuned": _few(vars(analysis.tuned)),
        "tuned_curve": _few(analysis.curves.tuned.mean),
        "theory": analysis.theory and _few(vars(analysis.theory)),
        "momentum_stage": analysis.momentum_stage,
        "stage_name": stage_name(analysis).partition(", ")[2],
        "training": {
            "meta_step": steps,
            "meta_objective": _few([row.meta_objective for row in rows]),
        },
        "stages": [_stage(rows[index]) for index in chosen],
    }


def _stage(row: CheckpointRow) -> dict[str, Any]:
    modes = row.modes
    pairs = {
        name: [value.real, value.imag]
        for name, value in (("beta", modes.beta), ("alpha", modes.alpha), ("start", modes.start))
    }
    real_ones = {name: getattr(modes, name) for name in ("delayed", "feedthrough", "gain")}
    return {
        "meta_step": row.meta_step,
        "degenerate": modes.degenerate,
        **_few(pairs, SYSTEM_DIGITS),
        **_few({**real_ones, "drift": row.fixed_point.drift}, SYSTEM_DIGITS),
        **_few({"meta_objective": row.meta_objective, "deviation": row.deviation}),
        **_few({"full": row.curves.full, "one_mode": row.curves.one_mode}),
    }


def _keep(explorer: Any) -> dict[str, Any]:
    """Problems to run sets of modes on, or the losses of some sets."""
    kept = dataclasses.asdict(explorer)
    kept.pop("inputs")
    return _few(kept, SYSTEM_DIGITS)


def _mechanisms(told: Any) -> dict[str, Any]:
    """The portrait of the states, and the update along the autonomous path."""
    found = told.mechanisms
    return {
        "meta_step": told.meta_step,
        "portrait": _few(vars(found.portrait), DIGITS - 1),
        "path": _few(vars(found.path)),
        "rate": _few(found.schedule.rate, SYSTEM_DIGITS),
        "density": _few({"edges": found.density.edges, "count": found.density.count}),
    }


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


PARTS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "analysis": ("analysis", _analysis),
    "explorer": ("keep", _keep),
    "mechanisms": ("mechanisms", _mechanisms),
    "tables": ("searches", lambda tables: [_search(*each) for each in tables.items()]),
}
"""By the field of `TaskResults`: the part's name in the page's data, and how it is made."""


def _few(value: Any, digits: int = DIGITS) -> Any:
    """``value`` with every float to ``digits`` digits, and null for what is not finite."""

    def number(value: float) -> float | None:
        if not math.isfinite(value):
            return None
        short = float(f"{value:.{digits}g}")
        return int(short) if short.is_integer() and abs(short) < 1e6 else short

    return plain(value, number)
