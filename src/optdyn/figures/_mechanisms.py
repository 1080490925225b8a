"""The mechanisms of an optimizer: six panels, from the numbers kept in a run folder."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from optdyn.figures._style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    LIGHT_GREY,
    ORANGE,
    PURPLE,
    VERMILLION,
    new_figure,
    plain_log_ticks,
    styled,
)
from optdyn.mechanisms import _measured as kinds

SHOWN_QUANTILE = 0.01
BELOW: dict[str, Any] = {
    "loc": "upper center", "bbox_to_anchor": (0.5, -0.2), "ncols": 2, "fontsize": 8,
}  # fmt: skip
"""Of a panel's legend."""


@styled
def mechanisms(measured: kinds.Mechanisms, closed_forms: dict[str, np.ndarray]) -> Figure:
    """Saturation, schedule, adaptation, state space, impulse and frequency response.

    ``measured`` and ``closed_forms``: see `MechanismsResult`.
    """
    figure, panels = new_figure((10.2, 7.6), 2, 3)
    _update(panels[0], measured.update, measured.density)
    _schedule(panels[1], measured.schedule)
    _adaptation(panels[2], measured.adaptation, closed_forms)
    _portrait(panels[3], measured.portrait)
    linear = measured.linear
    impulse = -linear.impulse
    panels[4].plot(impulse, color=BLUE)
    panels[4].axhline(0, color=LIGHT_GREY, linewidth=0.8, zorder=0)
    panels[4].set(title="impulse response at rest", xlabel="steps after a unit gradient")
    panels[4].set_ylabel("−Δx (parameter units)")
    panels[5].plot(linear.frequency, linear.response, color=BLUE)
    panels[5].set(
        xscale="log", yscale="log", title="frequency response at rest",
        xlabel="angular frequency (radians/step)", ylabel="gain |Δx/g|",
    )  # fmt: skip
    plain_log_ticks(panels[5].yaxis)
    for axes in panels:
        axes.title.set_fontsize(10)
    return figure


def _update(axes: Axes, update: kinds.MeasuredUpdate, density: kinds.MeasuredDensity) -> None:
    """The update against |g| over the density of gradients."""
    g = update.gradient
    low = max(float(density.quantiles[density.at == SHOWN_QUANTILE][0]), g[0])
    count, edges = density.count, density.edges
    behind = axes.twinx()
    behind.fill_between(
        np.sqrt(edges[:-1] * edges[1:]), count / max(count.max(), 1.0), color=LIGHT_GREY,
        alpha=0.55, linewidth=0, label="density of |g|",
    )  # fmt: skip
    behind.set(ylim=(0, 2.5), yticks=[])
    behind.spines["right"].set_visible(False)
    axes.set_zorder(behind.get_zorder() + 1)
    axes.patch.set_visible(False)
    axes.plot(g, update.rate_start * g, color=GREY, linestyle=":", label="linear, at start")
    axes.plot(g, update.start, color=BLUE, label="at the start h₀")
    axes.plot(g, update.rest, color=VERMILLION, linestyle="--", label="at rest h*")
    if np.isfinite(update.threshold_start):
        look: Any = {"color": BLACK, "linewidth": 0.9, "linestyle": "-."}
        axes.axvline(update.threshold_start, **look, label="threshold")
    axes.fill_between([], [], color=LIGHT_GREY, alpha=0.55, label="density of |g|")
    drawn = (g >= low) & (update.start > 0)
    shown = update.start[drawn]
    axes.set(xscale="log", yscale="log", xlim=(low, g[-1]), title="update against gradient")
    axes.set_ylim(0.5 * shown.min(), 2.0 * shown.max())
    axes.set(xlabel="gradient |g|", ylabel="−Δx, odd part (parameter units)")
    axes.legend(**BELOW)


def _schedule(axes: Axes, schedule: kinds.MeasuredSchedule) -> None:
    rate = schedule.rate
    mean, error = schedule.on_problems.mean, schedule.on_problems.standard_error
    steps = np.arange(len(rate))
    axes.plot(steps, rate, color=BLUE, label="zero gradients")
    axes.plot(steps, mean, color=VERMILLION, linestyle="--", label="on problems")
    axes.fill_between(steps, mean - error, mean + error, color=VERMILLION, alpha=0.2, linewidth=0)
    heights = np.concatenate([rate, mean + error])
    highest = float(np.max(heights[np.isfinite(heights)], initial=0.0))
    axes.set_ylim(0, 1.1 * highest if highest > 0 else None)
    axes.set(title="learning rate along the way", xlabel="iteration", ylabel="−∂Δx/∂g at g = 0")
    axes.legend(**BELOW)


def _adaptation(
    axes: Axes, adapted: kinds.MeasuredAdaptation, closed_forms: dict[str, np.ndarray]
) -> None:
    g, rate = adapted.gradient, adapted.rate
    for sign, color, marker in ((1, BLUE, "o"), (-1, ORANGE, "s")):
        side = np.sign(g) == sign
        size, height = np.abs(g[side]), rate[side]
        axes.plot(
            size, np.abs(height), color=color, marker=marker, markersize=3,
            label=f"learned, g {'>' if sign > 0 else '<'} 0",
        )  # fmt: skip
        uphill = height < 0
        if uphill.any():
            axes.plot(
                size[uphill], -height[uphill], color=color, marker=marker, markersize=5,
                markerfacecolor="white", linestyle="none", label="negative",
            )  # fmt: skip
    size = closed_forms["gradient"]
    styles = (("rmsprop", "RMSProp", GREEN, "-."), ("adam", "Adam", PURPLE, "--"))
    for name, label, color, linestyle in styles:
        if name in closed_forms:
            axes.plot(size, closed_forms[name], color=color, linestyle=linestyle, label=label)
    axes.set(xscale="log", yscale="log", title="learning rate under constant g")
    axes.set(xlabel="constant gradient |g|", ylabel="|∂Δx/∂g| at (h*(g), 0)")
    axes.legend(**BELOW)


def _portrait(axes: Axes, portrait: kinds.MeasuredPortrait) -> None:
    for count, path in enumerate(portrait.trajectories):
        axes.plot(
            path[:, 0], path[:, 1], color=GREY, linewidth=0.8, alpha=0.8, zorder=1,
            label="trajectories" if count == 0 else None,
        )  # fmt: skip
    curve = portrait.fixed_curve
    axes.plot(
        curve[:, 0], curve[:, 1], color=BLUE, marker=".", linewidth=1.2, label="fixed points h*(g)"
    )
    for name, label, marker, face in (
        ("start", "start h₀", "o", "white"),
        ("rest", "rest h*", "D", VERMILLION),
    ):
        x, y = getattr(portrait, name)[:2]
        axes.scatter(
            [x], [y], marker=marker, facecolor=face, edgecolor=BLACK, s=42, label=label, zorder=4
        )
    explained = 100 * portrait.explained
    axes.set_xlabel(f"component 1 ({explained[0]:.3g} % of variance)")
    axes.set_ylabel(f"component 2 ({explained[1]:.3g} %)")
    axes.set(title="states, principal components", xmargin=0.1, ymargin=0.1)
    axes.legend(**BELOW)
