"""The figures and numbers of one optimizer taken apart, saved in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from optdyn import figures
from optdyn.dynamics import Dissection, Eigenmodes
from optdyn.runs._store import write_json

SUMMARY = "optimizer.json"
LEADING = 3
LONGEST, SHORTEST = 400, 20
GROUPS = {1: "mode", 2: "mode pair"}


def save_dissection(found: Dissection, name: str, folder: Path) -> None:
    """Write `Dissection.summary` and four figures, each with its data, into ``folder``."""
    write_json(folder / SUMMARY, {"optimizer": name, **found.summary()})
    modes = found.modes
    spectrum: dict[str, Any] = {
        part: getattr(modes, part) for part in ("beta", "alpha", "gain", "feedthrough")
    }
    impulse, stability, identification = impulse_parts(modes), found.stability, found.identification
    drawn = {
        "optimizer_modes": (figures.optimizer_modes(**spectrum), spectrum),
        "optimizer_impulse": (figures.optimizer_impulse(**impulse), impulse),
        "optimizer_stability": (figures.optimizer_stability(stability), vars(stability)),
        "optimizer_identification": (
            figures.optimizer_identification(identification),
            vars(identification),
        ),
    }
    title = Path(name).name  # of a checkpoint the file, which fits
    for file, (figure, data) in drawn.items():
        figures.save_figure(figures.entitled(figure, title), data, folder, file)


def impulse_parts(modes: Eigenmodes) -> dict[str, Any]:
    """The linear response over a few of its timescales, and the leading modes' parts.

    As `optdyn.figures.optimizer_impulse` draws them.
    """
    driven = np.flatnonzero(modes.gain > 1e-3 * np.max(modes.gain, initial=0.0))
    longest = np.max(modes.timescale[driven], initial=np.max(modes.lag[driven], initial=0))
    steps = int(np.clip(4 * longest, SHORTEST, LONGEST)) if np.isfinite(longest) else LONGEST
    parts: list[np.ndarray] = []
    labels: list[str] = []
    taken: set[int] = set()
    for first in driven.tolist():
        if first in taken or len(parts) == LEADING:
            continue
        group = modes.with_conjugates([first])
        taken.update(group.tolist())
        parts.append(modes.mode_response(group.tolist(), steps))
        size = f"|β| = {abs(modes.beta[first]):.4g}"
        labels.append(f"{GROUPS.get(len(group), f'{len(group)} modes together')}, {size}")
    return {
        "linear": modes.linearization.impulse_response(steps),
        "modes": np.array(parts).reshape(len(parts), steps),
        "labels": labels,
        "feedthrough": modes.feedthrough,
    }
