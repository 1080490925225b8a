"""The figures that explain an optimizer: its mechanisms, its modes' paths, what distils it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from optdyn import figures
from optdyn.figures import Score, entitled, save_figure
from optdyn.figures._style import readable
from optdyn.runs._explained_results import Judged, TracksResult
from optdyn.runs._store import write_bytes
from optdyn.study._mechanism_claims import KEPT, KEPT_ELSEWHERE
from optdyn.study._results import TaskResults


def draw_explanation(result: TaskResults, folder: Path) -> None:
    """Draw a task's mechanisms, followed modes (and their film) and distillation."""
    explained = result.explained
    data: dict[str, Any] = {
        "measured": explained.mechanisms, "closed_forms": explained.closed_forms
    }  # fmt: skip
    figure = figures.mechanisms(**data)
    last = explained.meta_step
    entitled(figure, f"{readable(result.task)}: mechanisms at meta-step {last:,}")
    save_figure(figure, data, folder, f"mechanisms_{result.task}")
    _draw_tracks(result, explained.tracks, folder)
    _draw_distillation(result, folder)


def _draw_tracks(result: TaskResults, tracks: TracksResult, folder: Path) -> None:
    data = {"meta_step": np.array(tracks.meta_step), "beta": tracks.beta, "gain": tracks.gain}
    name = f"mode_tracks_{result.task}"
    chosen = result.analysis.momentum_stage
    figure = figures.mode_tracks(**data, chosen=chosen)
    entitled(figure, f"{readable(result.task)}: modes followed through meta-training")
    save_figure(figure, data, folder, name)
    write_bytes(folder / f"{name}.gif", figures.mode_film(**data))


def _draw_distillation(result: TaskResults, folder: Path) -> None:
    distilled = result.distilled
    data: dict[str, Any] = {
        "sizes": [
            _kept(f"+ {row.added}" if place else row.added, row)
            for place, row in enumerate(distilled.sizes)
        ],
        "without": [_kept(f"without {name}", row) for name, row in distilled.without.items()],
        "learned_without": [_kept(n, row) for n, row in distilled.learned_without.items()],
        "baseline": distilled.baseline,
        "aim": KEPT.get(result.task, KEPT_ELSEWHERE),
    }
    figure = entitled(figures.advantage_kept(**data), readable(result.task))
    save_figure(figure, data, folder, f"advantage_kept_{result.task}")


def _kept(name: str, row: Judged) -> Score:
    return Score(name, row.kept.fraction, row.kept.standard_error)
