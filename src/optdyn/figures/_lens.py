"""A training as the lens saw it: sharpness against its edge, rates, margin, multipliers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from optdyn.errors import UserError
from optdyn.figures._style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SHADE,
    SKY_BLUE,
    VERMILLION,
    finite,
    new_figure,
    plain_log_ticks,
    styled,
)

History = Sequence[Mapping[str, float]]

COLOURS = (BLUE, VERMILLION, GREEN, ORANGE, PURPLE, SKY_BLUE, BLACK, GREY)
DASHES = ("-", "--", "-.", ":")
MOST_GROUPS = 8
FARTHEST = 2.0
"""Multipliers of a larger modulus are drawn at this one, so that the unit circle stays large."""
ALIKE = 1e-3
"""Leaves whose rates differ by less than this part at every step are one group."""


@styled
def lens(history: Sequence[Mapping[str, float]]) -> Figure:
    """What `optdyn.Lens.scalars` gave during a training, one dictionary a look.

    Each has ``step`` beside the lens's own numbers; one that lacks a number leaves a gap. Four
    panels: sharpness against its edge; the factor by which the learning rate can grow (the
    margin, below 1 on a shaded ground); the learning rate of each group of leaves; and the
    multipliers of the sharpest direction in the complex plane, or, where there are none, how
    far each leaf moves in a step.

    Raises `UserError` for an empty history and for entries without ``step``.
    """
    if not history or any("step" not in row for row in history):
        raise UserError(
            "history: a list of dictionaries with a step each is needed "
            '(append {"step": k, **lens.scalars(state, params, batch)} as the training goes)'
        )
    figure, (sharpness, margin, rates, last) = new_figure((9.0, 6.6), 2, 2)
    steps = _column(history, "step")
    _sharpness(sharpness, history, steps)
    _margin(margin, history, steps)
    _by_group(rates, history, steps, "rate/", "learning rate")
    timed = [sharpness, margin, rates]
    if any(key.startswith("multiplier/") for row in history for key in row):
        _multipliers(figure, last, history, steps)
    else:
        _by_group(last, history, steps, "update_ratio/", "update over parameter ‖Δx‖ / ‖x‖")
        timed.append(last)
    for axes in timed:
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.grid(True, axis="y")
        axes.margins(x=0.02)
    return figure


def _column(history: History, name: str) -> Float[np.ndarray, " looks"]:
    return np.array([row.get(name, np.nan) for row in history], float)


def _log_line(axes: Axes, x: np.ndarray, y: np.ndarray, **look: Any) -> None:
    """What is positive and finite; a logarithmic axis cannot show the rest."""
    shown = np.where(np.isfinite(y) & (y > 0), y, np.nan)
    axes.plot(x, shown, marker="o", markersize=3, **look)
    if np.any(shown > 0):
        axes.set_yscale("log")


def _sharpness(axes: Axes, history: History, steps: np.ndarray) -> None:
    edge = _column(history, "sharpness_edge")
    _log_line(axes, steps, _column(history, "sharpness"), color=BLUE, label="sharpness")
    if np.any(np.isfinite(edge)):
        look: Any = {"color": VERMILLION, "linestyle": "--", "label": "edge of stability"}
        axes.plot(steps, finite(edge), **look)
    axes.set_title("sharpness: rate times curvature", loc="left")
    axes.set_ylabel("largest eigenvalue")
    axes.legend(loc="best")
    plain_log_ticks(axes.yaxis)


def _margin(axes: Axes, history: History, steps: np.ndarray) -> None:
    _log_line(axes, steps, _column(history, "margin"), color=BLUE)
    low, high = axes.get_ylim()
    if axes.get_yscale() == "log":
        low, high = min(low, 0.7), max(high, 1.4)
        axes.axhspan(low, 1.0, color=SHADE, zorder=0)
        axes.axhline(1.0, color=VERMILLION, linestyle="--", linewidth=1.2)
        axes.set_ylim(low, high)
    axes.set_title("margin: the rate can grow so many times", loc="left")
    axes.set_ylabel("factor on the learning rate")
    plain_log_ticks(axes.yaxis)


def _by_group(axes: Axes, history: History, steps: np.ndarray, prefix: str, title: str) -> None:
    names = list(dict.fromkeys(key for row in history for key in row if key.startswith(prefix)))
    groups: list[tuple[list[str], np.ndarray]] = []
    for name in names:
        values = _column(history, name)
        for members, seen in groups:
            if np.allclose(values, seen, rtol=ALIKE, atol=0.0, equal_nan=True):
                members.append(name.removeprefix(prefix))
                break
        else:
            groups.append(([name.removeprefix(prefix)], values))
    for i, (members, values) in enumerate(groups[:MOST_GROUPS]):
        label = ", ".join(members[:2]) + (f" and {len(members) - 2} more" if members[2:] else "")
        look = {"color": COLOURS[i % len(COLOURS)], "linestyle": DASHES[i % len(DASHES)]}
        _log_line(axes, steps, values, label=label, **look)
    more = len(groups) - MOST_GROUPS
    axes.set_title(title + (f" (the first {MOST_GROUPS} groups)" if more > 0 else ""), loc="left")
    axes.set_ylabel("a step")
    if groups:
        axes.legend(loc="best", fontsize=8)
    plain_log_ticks(axes.yaxis)


def _multipliers(figure: Figure, axes: Axes, history: History, steps: np.ndarray) -> None:
    keys = sorted({key.split("/")[1] for row in history for key in row if "multiplier/" in key})
    real, imaginary = (
        np.concatenate([_column(history, f"multiplier/{key}/{part}") for key in keys])
        for part in ("real", "imag")
    )
    modulus = np.hypot(real, imaginary)
    scale = np.minimum(1.0, FARTHEST / np.maximum(modulus, FARTHEST / 2))
    turn = np.linspace(0.0, 2 * np.pi, 400)
    axes.fill(np.cos(turn), np.sin(turn), color="#F2F2F2", zorder=0)
    axes.plot(np.cos(turn), np.sin(turn), color=GREY, linewidth=0.9)
    axes.axhline(0.0, color=GREY, linewidth=0.5)
    for sign in (1.0, -1.0):
        points = axes.scatter(
            scale * real, sign * scale * imaginary, c=np.tile(steps, len(keys)), cmap="viridis",
            s=22, edgecolor="white", linewidth=0.4, zorder=3,
        )  # fmt: skip
    figure.colorbar(points, ax=axes, label="step", pad=0.02)
    axes.set_aspect("equal", adjustable="datalim")
    axes.set_title("multipliers of the sharpest direction", loc="left")
    beyond = f" (beyond {FARTHEST:g}: drawn at {FARTHEST:g})" if np.any(modulus > FARTHEST) else ""
    axes.set(xlabel=f"real part{beyond}", ylabel="imaginary part")
