"""Meta-training drawn against meta-step: the training curve and the stage of momentum."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from optdyn.dynamics import timescale
from optdyn.figures._modes import meta_step_axis
from optdyn.figures._style import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    SKY_BLUE,
    VERMILLION,
    new_figure,
    plain_log_ticks,
    styled,
)

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy import ndarray

    from optdyn.figures._inputs import MomentumStage

SMOOTHING_FRACTION = 0.02
THEORY_DASHES = (0, (5, 2))
CEILING = 1e3
"""Ratios above it tell no more than that the run diverges; they are drawn as triangles."""
OVER: dict[str, Any] = {"color": BLUE, "marker": "^", "markersize": 5, "linestyle": "none"}


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
    any_exploded = bool(np.any(counts))
    rows = 2 if any_exploded else 1
    ratios = [3, 1] if any_exploded else [1]
    figure, panels = new_figure(
        (6.4, 3.2 + 1.0 * rows), rows, 1, sharex=True, gridspec_kw={"height_ratios": ratios}
    )
    window = max(1, round(SMOOTHING_FRACTION * meta_step.size))
    panels[0].plot(
        meta_step,
        meta_objective,
        color=SKY_BLUE,
        linewidth=0.7,
        alpha=0.8,
        label="each meta-step",
        rasterized=meta_step.size > 1000,
    )
    panels[0].plot(
        meta_step,
        _smoothed(meta_objective, window),
        color=BLUE,
        label=f"running mean over {window} meta-steps",
    )
    panels[0].set_yscale("log")
    plain_log_ticks(panels[0].yaxis)
    panels[0].set_ylabel("meta-objective (mean over batch)")
    figure.legend(loc="outside lower center", ncols=2)
    if any_exploded:
        some = np.flatnonzero(counts)
        panels[1].vlines(meta_step[some], 0, counts[some], color=VERMILLION, linewidth=0.8)
        panels[1].set_ylabel("problems\nexploded")
        panels[1].set_ylim(0, 1.1 * int(counts.max()))
        panels[1].yaxis.set_major_locator(MaxNLocator(3, integer=True))
    panels[-1].set_xlabel("meta-step")
    panels[-1].xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    panels[-1].margins(x=0.01)
    return figure


@styled
def momentum_stage(stage: MomentumStage) -> Figure:
    """How momentum appears in meta-training, and what the optimizer does beyond it."""
    figure, panels = new_figure((8.0, 8.2), 3, 2, sharex=True)
    steps = np.asarray(stage.meta_step)
    drawn = (
        ("mean loss over the unroll", "meta-objective", stage.meta_objective),
        ("leading mode's gain over the next mode's", "ratio of |α/(1−β)|", stage.gain_gap),
        ("leading mode's learning rate", "α", np.where(stage.alpha > 0, stage.alpha, np.nan)),
        ("leading mode's momentum", "timescale −1/ln β (steps)", _decaying(timescale(stage.beta))),
        ("momentum run with these α and β", "loss relative to best tuned", stage.momentum_ratio),
        ("one mode against the full optimizer", "relative deviation of loss", stage.deviation),
    )
    for axes, (title, label, values) in zip(panels, drawn, strict=True):
        ceiling = CEILING if axes in panels[4:] else np.inf
        _checkpoints(axes, steps, np.asarray(values, float), ceiling)
        axes.axvline(stage.chosen, color=VERMILLION, linestyle="--", linewidth=1.2)
        axes.set_ylabel(label)
        axes.set_title(title, loc="left")
        axes.grid(True, axis="y")
    _level(panels[0], stage.tuned_meta_objective, GREEN, "-")
    for point, color, linestyle in (
        (stage.tuned, GREEN, "-"),
        (stage.theory, ORANGE, THEORY_DASHES),
    ):
        if point is not None:
            _level(panels[2], point.alpha, color, linestyle)
            _level(panels[3], float(timescale(np.asarray(point.beta))), color, linestyle)
    for axes, name in (
        (panels[1], "gain_gap"),
        (panels[4], "momentum_ratio"),
        (panels[5], "deviation"),
    ):
        if name in stage.thresholds:
            _level(axes, stage.thresholds[name], GREY, ":")
    for axes in panels[4:]:
        meta_step_axis(axes, steps)
    for axes in panels:
        plain_log_ticks(axes.yaxis)
    _stage_legend(figure, stage)
    return figure


def _checkpoints(
    axes: Axes, steps: Int[ndarray, " n"], values: Float[ndarray, " n"], ceiling: float
) -> None:
    """Positive values on a logarithmic axis; triangles for what is over a finite ``ceiling``."""
    # At 0 a line on a logarithmic axis would fall straight down.
    shown = np.where((values > 0) & (values <= ceiling), values, np.nan)
    axes.plot(steps, shown, color=BLUE, marker="o", markersize=4, linewidth=1.2)
    if np.any(values > 0):
        axes.set_yscale("log")
    if np.isfinite(ceiling):
        over = steps[_over(values, ceiling)]
        axes.plot(over, np.full(over.size, 0.97), transform=axes.get_xaxis_transform(), **OVER)


def _over(values: Float[ndarray, " n"], ceiling: float) -> Bool[ndarray, " n"]:
    """Which are above ``ceiling``, or not finite as the run diverged."""
    return ~(np.asarray(values, float) <= ceiling)


def _stage_legend(figure: Figure, stage: MomentumStage) -> None:
    """One legend for all panels, below them."""
    axes = figure.axes[0]
    looks: list[tuple[str, dict[str, Any]]] = [
        ("learned optimizer at each checkpoint", {"color": BLUE, "marker": "o", "markersize": 4}),
        (
            f"chosen checkpoint: meta-step {stage.chosen:,}",
            {"color": VERMILLION, "linestyle": "--"},
        ),
        ("best tuned momentum", {"color": GREEN}),
    ]
    if stage.theory is not None:
        looks.append(("optimal momentum (theory)", {"color": ORANGE, "linestyle": THEORY_DASHES}))
    if stage.thresholds:
        looks.append(("threshold of the claim", {"color": GREY, "linestyle": ":"}))
    if any(_over(values, CEILING).any() for values in (stage.momentum_ratio, stage.deviation)):
        looks.append((f"above {CEILING:,.0f}, or diverged", OVER))
    handles = [axes.plot([], [], label=label, **look)[0] for label, look in looks]
    figure.legend(handles=handles, loc="outside lower center", ncols=2)


def _level(axes: Axes, value: float, color: str, linestyle: object) -> None:
    axes.axhline(value, color=color, linestyle=linestyle, linewidth=1.5, zorder=1)


def _decaying(steps: Float[ndarray, " n"]) -> Float[ndarray, " n"]:
    return np.where(np.isfinite(steps), steps, np.nan)


def _smoothed(values: Float[ndarray, " n"], window: int) -> Float[ndarray, " n"]:
    """Geometric mean over ``window`` neighbours, fewer at the ends; NaN does not count."""
    positive = np.isfinite(values) & (values > 0)
    logs = np.where(positive, np.log(np.where(positive, values, 1.0)), 0.0)
    box = np.ones(window)
    with np.errstate(invalid="ignore"):
        return np.exp(np.convolve(logs, box, "same") / np.convolve(positive, box, "same"))
