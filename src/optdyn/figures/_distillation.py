"""How much of a learned optimizer's advantage readable ones reach, and what mechanisms add."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from optdyn.figures._style import BLACK, BLUE, GREEN, GREY, ORANGE, new_figure, readable, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from optdyn.figures._inputs import Score

NOTE = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
LOWEST = -1.0
"""What reaches less than this is drawn here, with its value beside it."""
TOO_LONG = 1e4
"""From here on values are written with a power of ten."""


@styled
def advantage_kept(
    sizes: Sequence[Score],
    without: Sequence[Score],
    learned_without: Sequence[Score],
    baseline: str,
    aim: float,
) -> Figure:
    """Fractions of the advantage over ``baseline``, one bar each, with standard errors.

    ``sizes``: readable optimizers, smallest first; ``without``: the chosen one less a
    part; ``learned_without``: the learned one less a mechanism. ``aim``: a line.
    """
    groups = (
        ("readable optimizers, smallest first", sizes, BLUE),
        ("the chosen one without one part", without, ORANGE),
        ("the learned optimizer without a mechanism", learned_without, GREEN),
    )
    rows = [max(len(scores), 1) for _, scores, _ in groups]
    figure, panels = new_figure(
        (7.4, 1.6 + 0.34 * sum(rows)), 3, 1, sharex=True, gridspec_kw={"height_ratios": rows}
    )
    for axes, (title, scores, color) in zip(panels, groups, strict=True):
        _bars(axes, scores, color)
        axes.axvline(0, color=BLACK, linewidth=0.9)
        axes.axvline(1, color=GREY, linestyle="--", linewidth=1.1)
        axes.axvline(aim, color=GREY, linestyle=":", linewidth=1.1)
        axes.set_title(title, loc="left")
    inside = [s for _, scores, _ in groups for s in scores if s.mean >= LOWEST]
    reach = np.array([s.mean + s.standard_error for s in inside])
    top = float(np.max(reach[np.isfinite(reach)], initial=1.0))
    panels[-1].set_xlim(LOWEST - 0.05, 1.25 * top)
    panels[-1].set_xlabel(
        f"fraction of the advantage over {readable(baseline)} that is reached\n"
        f"(0: {readable(baseline)}; dashed: the learned optimizer; dotted: aim {aim:g};\n"
        f"pale bars go on beyond −{-LOWEST:g})"
    )
    return figure


def _worth(fraction: float) -> str:
    """A fraction as a few characters, however far from 1 it is."""
    if not np.isfinite(fraction):
        return "diverged"
    if abs(fraction) < TOO_LONG:
        return f"{fraction:.2f}".replace("-", "−")
    power = int(np.floor(np.log10(abs(fraction))))
    return f"{fraction / 10.0**power:.1f}·$10^{{{power}}}$".replace("-", "−")


def _bars(axes: Axes, scores: Sequence[Score], color: str) -> None:
    places = np.arange(len(scores))
    for place, score in zip(places, scores, strict=True):
        known = np.isfinite(score.mean)
        length = max(score.mean, LOWEST) if known else LOWEST
        inside = known and score.mean >= LOWEST
        axes.barh(
            place, length, height=0.66, color=color, alpha=0.85 if inside else 0.35,
            xerr=score.standard_error if inside and np.isfinite(score.standard_error) else None,
            error_kw={"elinewidth": 1.1, "capsize": 2.5},
        )  # fmt: skip
        error = score.standard_error if inside and np.isfinite(score.standard_error) else 0.0
        edge = max(length + error, 0.0)
        words = _worth(score.mean)
        axes.text(edge + 0.03, float(place), words, va="center", fontsize=9, bbox=NOTE)
    axes.set_yticks(places, labels=[score.name for score in scores])
    axes.set_ylim(len(scores) - 0.4, -0.6)
