"""Meta-training drawn against meta-step: its curve, the stage of momentum, modes followed."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Complex, Float, Int
from matplotlib.animation import FuncAnimation, PillowWriter
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter
from numpy import ndarray

from optdyn.dynamics import timescale
from optdyn.figures._modes import meta_step_axis
from optdyn.figures._style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SKY_BLUE,
    VERMILLION,
    finite,
    new_figure,
    plain_log_ticks,
    styled,
    unit_circle,
)
from optdyn.mechanisms import MomentumPoint, StageRow, TunedMomentum

SMOOTHING_FRACTION = 0.02
THEORY_DASHES = (0, (5, 2))
CEILING = 1e3
"""Ratios above it tell no more than that the run diverges; they are drawn as triangles."""
OVER: dict[str, Any] = {"color": BLUE, "marker": "^", "markersize": 5, "linestyle": "none"}
TRACK_COLOURS = (VERMILLION, BLUE, GREEN, ORANGE, PURPLE, SKY_BLUE, GREY, BLACK)
DASHED_FROM = 4
GAIN_DECADES = 5
FRAMES_A_SECOND = 4
FILM_DPI = 80
LARGEST_MARKER = 260.0
CHECKPOINTS_DRAWN, TRACKS_DRAWN = 40, 6
"""More lines and corners of them make a tangle of modes that training throws about."""


@styled
def training_curve(
    meta_step: Int[ndarray, " steps"],
    meta_objective: Float[ndarray, " steps"],
    exploded: Int[ndarray, " steps"] | None = None,
) -> Figure:
    """Meta-objective against meta-step, raw and smoothed (geometric running mean).

    ``exploded``: the number of problems of each batch that exploded; a second
    panel shows it where there was any.
    """
    meta_step, meta_objective = np.asarray(meta_step), np.asarray(meta_objective, float)
    counts = np.zeros(meta_step.size) if exploded is None else np.asarray(exploded)
    some = np.flatnonzero(counts)
    heights = [3, 1] if some.size else [1]
    size = (6.4, 3.2 + 1.0 * len(heights))
    figure, panels = new_figure(size, len(heights), 1, sharex=True, height_ratios=heights)
    window = max(1, round(SMOOTHING_FRACTION * meta_step.size))
    panels[0].plot(
        meta_step, meta_objective, color=SKY_BLUE, linewidth=0.7, alpha=0.8,
        label="each meta-step", rasterized=meta_step.size > 1000,
    )  # fmt: skip
    smooth = _smoothed(meta_objective, window)
    panels[0].plot(meta_step, smooth, color=BLUE, label=f"running mean over {window} meta-steps")
    panels[0].set(yscale="log", ylabel="meta-objective (mean over batch)")
    plain_log_ticks(panels[0].yaxis)
    figure.legend(loc="outside lower center", ncols=2)
    if some.size:
        panels[1].vlines(meta_step[some], 0, counts[some], color=VERMILLION, linewidth=0.8)
        panels[1].set(ylabel="problems\nexploded", ylim=(0, 1.1 * int(counts.max())))
        panels[1].yaxis.set_major_locator(MaxNLocator(3, integer=True))
    panels[-1].set_xlabel("meta-step")
    panels[-1].xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    panels[-1].margins(x=0.01)
    return figure


@styled
def momentum_stage(
    checkpoints: Sequence[StageRow],
    tuned: TunedMomentum,
    theory: MomentumPoint | None,
    chosen: int,
    thresholds: Mapping[str, float],
) -> Figure:
    """How momentum appears in meta-training, and what the optimizer does beyond it.

    ``chosen`` is the meta-step of the checkpoint that is taken as the momentum stage;
    ``thresholds`` maps ``gain_gap``, ``momentum_ratio``, ``deviation`` to the levels that claims
    test. ``theory`` is None where the task's range of curvatures is not known.
    """

    def each(name: str) -> Float[ndarray, " checkpoints"]:
        return finite([getattr(row, name) for row in checkpoints])

    figure, panels = new_figure((8.0, 8.2), 3, 2, sharex=True)
    steps, ratio, deviation = each("meta_step"), each("momentum_ratio"), each("deviation")
    drawn = (
        ("mean loss over the unroll", "meta-objective", each("meta_objective")),
        ("leading mode's gain over the next mode's", "ratio of |α/(1−β)|", each("gain_gap")),
        ("leading mode's learning rate", "α", each("alpha")),
        ("leading mode's momentum", "timescale −1/ln β (steps)", timescale(each("beta"))),
        ("momentum run with these α and β", "loss relative to best tuned", ratio),
        ("one mode against the full optimizer", "relative deviation of loss", deviation),
    )
    for axes, (title, label, values) in zip(panels, drawn, strict=True):
        ceiling = CEILING if axes in panels[4:] else np.inf
        _checkpoints(axes, steps, values, ceiling)
        axes.axvline(chosen, color=VERMILLION, linestyle="--", linewidth=1.2)
        axes.set_ylabel(label)
        axes.set_title(title, loc="left")
        axes.grid(True, axis="y")
    levels: list[tuple[int, float, str, Any]] = [(0, tuned.meta_objective, GREEN, "-")]
    for point, color, dashes in ((tuned, GREEN, "-"), (theory, ORANGE, THEORY_DASHES)):
        if point is not None:
            slow = float(timescale(np.asarray(point.beta)))
            levels += [(2, point.alpha, color, dashes), (3, slow, color, dashes)]
    for place, name in ((1, "gain_gap"), (4, "momentum_ratio"), (5, "deviation")):
        if name in thresholds:
            levels.append((place, thresholds[name], GREY, ":"))
    for place, level, color, dashes in levels:
        panels[place].axhline(level, color=color, linestyle=dashes, linewidth=1.5, zorder=1)
    for axes in panels[4:]:
        meta_step_axis(axes, steps)
    for axes in panels:
        plain_log_ticks(axes.yaxis)
    looks: list[tuple[str, dict[str, Any]]] = [
        ("learned optimizer at each checkpoint", {"color": BLUE, "marker": "o", "markersize": 4}),
        (f"chosen checkpoint: meta-step {chosen:,}", {"color": VERMILLION, "linestyle": "--"}),
        ("best tuned momentum", {"color": GREEN}),
    ]
    if theory is not None:
        looks.append(("optimal momentum (theory)", {"color": ORANGE, "linestyle": THEORY_DASHES}))
    if thresholds:
        looks.append(("threshold of the claim", {"color": GREY, "linestyle": ":"}))
    if any(_over(values, CEILING).any() for values in (ratio, deviation)):
        looks.append((f"above {CEILING:,.0f}, or diverged", OVER))
    handles = [panels[0].plot([], [], label=label, **look)[0] for label, look in looks]
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return figure


@styled
def mode_tracks(
    meta_step: Int[ndarray, " S"],
    beta: Complex[ndarray, "S K"],
    gain: Float[ndarray, "S K"],
    chosen: int | None = None,
) -> Figure:
    """Each followed mode's eigenvalue path, timescale and gain against meta-step.

    Columns are modes, those that matter most first; the first `TRACKS_DRAWN` are drawn, at
    `CHECKPOINTS_DRAWN` checkpoints evenly spread. ``chosen``: a meta-step to mark.
    """
    spread = np.linspace(0, len(meta_step) - 1, min(CHECKPOINTS_DRAWN, len(meta_step)))
    thin = np.unique(spread.round().astype(int))
    meta_step, beta, gain = meta_step[thin], beta[thin, :TRACKS_DRAWN], gain[thin, :TRACKS_DRAWN]
    figure, (plane, slow, strong) = new_figure((10.4, 3.9), 1, 3)
    _plane(plane, beta)
    visible = np.where(gain > 0, gain, np.nan)
    first: dict[str, Any] = {"s": 22, "facecolor": "white", "zorder": 3}
    last: dict[str, Any] = {"s": 30, "zorder": 4}
    for j, color in zip(range(beta.shape[1]), TRACK_COLOURS, strict=False):
        real, imaginary = beta[:, j].real, beta[:, j].imag
        dashes = "-" if j < DASHED_FROM else (0, (4, 1.2))
        look: dict[str, Any] = {"color": color, "linestyle": dashes}
        plane.plot(real, imaginary, **look, linewidth=1.0, alpha=0.8)
        plane.scatter(real[:1], imaginary[:1], **first, edgecolor=color)
        plane.scatter(real[-1:], imaginary[-1:], **last, color=color)
        slow.plot(meta_step, timescale(beta[:, j]), **look, linewidth=1.3)
        strong.plot(meta_step, visible[:, j], **look, linewidth=1.3, label=f"mode {j + 1}")
    plane.scatter([], [], **first, edgecolor=BLACK, label="first checkpoint")
    plane.scatter([], [], **last, color=BLACK, label="last checkpoint")
    plane.set_title("paths of eigenvalues")
    top = float(np.nanmax(gain[np.isfinite(gain)], initial=1e-30))
    strong.set_ylim(top * 10.0**-GAIN_DECADES, 3.0 * top)
    slow.set(ylabel="timescale −1/ln|β| (steps)", title="timescales")
    strong.set(ylabel="|α/(1−β)|", title="steady-state gains")
    for axes in (slow, strong):
        axes.set_yscale("log")
        meta_step_axis(axes, meta_step)
        axes.grid(True, axis="y")
        if chosen is not None:
            axes.axvline(chosen, color=GREY, linestyle=":", linewidth=1.4)
    plain_log_ticks(slow.yaxis)
    figure.legend(loc="outside lower center", ncols=beta.shape[1] + 2, fontsize=8)
    return figure


@styled
def mode_film(
    meta_step: Int[ndarray, " S"], beta: Complex[ndarray, "S K"], gain: Float[ndarray, "S K"]
) -> bytes:
    """An animated GIF of the modes in the complex plane, one frame a checkpoint.

    A mode's area grows with its gain, its colour is that of `mode_tracks`.
    """
    figure, (plane,) = new_figure((4.6, 4.8))
    _plane(plane, beta)
    colors = [TRACK_COLOURS[j % len(TRACK_COLOURS)] for j in range(beta.shape[1])]
    points = plane.scatter(beta[0].real, beta[0].imag, c=colors, edgecolor=BLACK, zorder=3)
    top = float(np.nanmax(gain[np.isfinite(gain)], initial=1e-30))
    area = 12.0 + LARGEST_MARKER * np.sqrt(np.nan_to_num(gain, posinf=top) / top)
    trails = [plane.plot([], [], color=color, linewidth=0.9, alpha=0.6)[0] for color in colors]

    def draw(frame: int) -> None:
        points.set_offsets(np.column_stack([beta[frame].real, beta[frame].imag]))
        points.set_sizes(area[frame])
        for j, trail in enumerate(trails):
            trail.set_data(beta[: frame + 1, j].real, beta[: frame + 1, j].imag)
        plane.set_title(f"eigenvalues at meta-step {int(meta_step[frame]):,}")

    film = FuncAnimation(figure, draw, frames=len(meta_step), init_func=lambda: None)
    # The writer takes a path alone.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "film.gif"
        film.save(path, writer=PillowWriter(fps=FRAMES_A_SECOND), dpi=FILM_DPI)
        return path.read_bytes()


def _plane(axes: Axes, beta: Complex[ndarray, "S K"]) -> None:
    """Axes that show every eigenvalue, with the unit circle."""
    unit_circle(axes)
    real, imaginary = beta.real[np.isfinite(beta)], np.abs(beta.imag[np.isfinite(beta)])
    low = min(float(np.min(real, initial=0.5)) - 0.08, 0.45)
    high = max(1.1, float(np.max(real, initial=1.0)) + 0.05)
    half = max(float(np.max(imaginary, initial=0.0)) * 1.2, (high - low) / 2)
    axes.set(xlim=(low, high), ylim=(-half, half))


def _checkpoints(
    axes: Axes, steps: Int[ndarray, " n"], values: Float[ndarray, " n"], ceiling: float
) -> None:
    """Positive values on a logarithmic axis; triangles for what is over a finite ``ceiling``."""
    # At 0 a line on a logarithmic axis would fall straight down.
    shown = np.where((values > 0) & np.isfinite(values) & (values <= ceiling), values, np.nan)
    axes.plot(steps, shown, color=BLUE, marker="o", markersize=4, linewidth=1.2)
    if np.any(values > 0):
        axes.set_yscale("log")
    if np.isfinite(ceiling):
        over = steps[_over(values, ceiling)]
        axes.plot(over, np.full(over.size, 0.97), transform=axes.get_xaxis_transform(), **OVER)


def _over(values: Float[ndarray, " n"], ceiling: float) -> Bool[ndarray, " n"]:
    """Which are above ``ceiling``, or not finite as the run diverged."""
    return ~(np.asarray(values, float) <= ceiling)


def _smoothed(values: Float[ndarray, " n"], window: int) -> Float[ndarray, " n"]:
    """Geometric mean over ``window`` neighbours, fewer at the ends; NaN does not count."""
    positive = np.isfinite(values) & (values > 0)
    logs = np.where(positive, np.log(np.where(positive, values, 1.0)), 0.0)
    box = np.ones(window)
    with np.errstate(invalid="ignore"):
        return np.exp(np.convolve(logs, box, "same") / np.convolve(positive, box, "same"))
