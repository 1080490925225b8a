"""Figures 7a and 7b, and the modes over meta-training: what the linearisation shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Complex, Float, Int
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy import ndarray

from optdyn.dynamics import timescale
from optdyn.figures._style import (
    BLACK,
    BLUE,
    DARK_GOLD,
    GOLD,
    GREEN,
    GREY,
    LEADING,
    LIGHT_GREY,
    SKY_BLUE,
    VERMILLION,
    WIDE,
    cross,
    new_figure,
    plain_log_ticks,
    styled,
    tiles,
    unit_circle,
)
from optdyn.mechanisms import MomentumPoint

ALPHA_DECADES = 6
GAIN_DECADES = 3
SHORTEST_TIMESCALE = 0.1
FEW_CHECKPOINTS = 4
STAGE_COLUMNS = 4
STAGE_STARS = 0.4
"""The size of the reference stars in a small panel, over their usual one."""


@styled
def eigenvalue_plane(beta: Complex[ndarray, " modes"]) -> Figure:
    """Fig. 7a: eigenvalues in the complex plane, and the neighbourhood of 1 enlarged.

    ``beta`` are the Jacobian's eigenvalues, that of the leading mode first, which is pointed out
    (its conjugate goes with it).
    """
    beta = np.asarray(beta, complex)
    stands_out = np.isclose(beta, np.conj(beta[0])) & (beta.imag != 0)
    stands_out[0] = True
    others, leaders = beta[~stands_out], beta[stands_out]
    figure, (whole, near) = new_figure(WIDE, 1, 2)
    small: Any = {"s": 24, "color": BLUE, "alpha": 0.75, "edgecolor": "white", "linewidth": 0.4}
    for axes in (whole, near):
        cross(axes)
        unit_circle(axes, "unit circle")
        axes.scatter(others.real, others.imag, **small, label="other modes", zorder=3)
        axes.scatter(leaders.real, leaders.imag, **LEADING, s=80, label="leading mode", zorder=4)
        axes.set_aspect("equal")
    reach = max(1.2, 1.1 * float(np.max(np.abs(beta))))
    whole.set(xlim=(-reach, reach), ylim=(-reach, reach), title="all eigenvalues")
    distance = np.abs(1 - beta)  # the square holds the leading mode and the slowest others
    nearby = np.sort(distance)[min(4, beta.size - 1)]
    half = float(np.clip(max(distance[0], nearby), 0.01, 0.5))
    near.set(xlim=(1 - 1.7 * half, 1 + 0.3 * half), ylim=(-half, half), title="near 1, enlarged")
    near.locator_params(nbins=5)
    corner = (1 - 1.7 * half, -half)
    whole.add_patch(Rectangle(corner, 2 * half, 2 * half, fill=False, linewidth=0.9))
    handles, labels = whole.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure


@styled
def momentum_hyperparameters(
    beta: Complex[ndarray, " modes"],
    alpha: Complex[ndarray, " modes"],
    tuned: MomentumPoint,
    theory: MomentumPoint | None,
    linear: Sequence[MomentumPoint] = (),
) -> Figure:
    """Fig. 7b: each mode as momentum, timescale against learning rate, both logarithmic.

    The leading mode comes first. ``tuned`` is the best momentum found by search, ``theory`` the
    optimal one for the task's range of curvature, where that is known, and ``linear`` the modes
    of the best linear optimizer. Modes beyond the axes are counted in a note.
    """
    beta, alpha = np.asarray(beta, complex), np.asarray(alpha, complex)
    figure, (axes,) = new_figure((5.8, 5.0))
    size, steps = np.abs(alpha), timescale(beta)
    oscillating = np.abs(beta.imag) > 1e-9 * np.maximum(np.abs(beta), 1e-300)
    negative = ~oscillating & (alpha.real < 0)
    drawn = _drawn(size, steps, size.max())
    others = drawn & (np.arange(beta.size) != 0)
    small: Any = {"s": 34, "edgecolor": BLUE, "linewidth": 0.9, "alpha": 0.85, "zorder": 3}
    for label, kind, marker, face in (
        ("mode, real, α > 0", ~oscillating & ~negative, "o", BLUE),
        ("mode, real, α < 0", negative, "v", "white"),
        ("mode, conjugate pair", oscillating, "s", SKY_BLUE),
    ):
        chosen = kind & others
        if np.any(chosen):
            look: Any = {"marker": marker, "facecolor": face, "label": label, **small}
            axes.scatter(size[chosen], steps[chosen], **look)
    _stars(axes, tuned, theory)
    if linear:
        _linear_stars(axes, linear)
    lead = (size[:1], steps[:1])
    axes.scatter(*lead, s=480, facecolor="none", edgecolor=VERMILLION, linewidth=2.0, zorder=4)
    axes.scatter(*lead, **LEADING, s=46, label="leading mode (ringed)", zorder=7)
    axes.set(xscale="log", yscale="log", xlabel="learning rate |α|")
    axes.set_ylabel("momentum timescale −1/ln|β| (steps)")
    axes.grid(True)
    axes.set_axisbelow(True)
    axes.margins(0.09)
    plain_log_ticks(axes.yaxis)
    if not drawn.all():
        words = (
            f"{np.sum(~drawn)} of {beta.size} modes lie beyond the axes "
            "(|α| < 10⁻⁶ of the largest, or |β| ≥ 1, or β near 0)"
        )
        axes.set_title(words, fontsize=9, color=GREY)
    figure.legend(loc="outside lower center", ncols=2, markerscale=0.75)
    return figure


@styled
def mode_stages(
    meta_step: Int[ndarray, " checkpoints"],
    beta: Complex[ndarray, "checkpoints modes"],
    alpha: Complex[ndarray, "checkpoints modes"],
    tuned: MomentumPoint,
    theory: MomentumPoint | None,
    chosen: int | None = None,
) -> Figure:
    """Fig. 7b for many checkpoints, one small panel each, on the same axes.

    The leading mode comes first. ``chosen``: the meta-step whose panel is framed, as the stage of
    momentum.
    """
    count, size, steps = len(meta_step), np.abs(alpha), timescale(beta)
    figure, panels = tiles(count, STAGE_COLUMNS, (2.1, 2.0), (0.8, 1.0), sharex=True, sharey=True)
    shown, lead = _drawn(size, steps, float(np.max(size))), np.arange(size.shape[1]) == 0
    for place, (axes, at) in enumerate(zip(panels, meta_step, strict=True)):
        others, first = shown[place] & ~lead, shown[place] & lead
        x, y = size[place], steps[place]
        axes.scatter(x[others], y[others], s=12, color=BLUE, alpha=0.7, label="other modes")
        axes.scatter(x[first], y[first], **LEADING, s=46, label="leading mode", zorder=7)
        axes.grid(True)
        axes.set_axisbelow(True)
        axes.margins(0.1)
        _stars(axes, tuned, theory, STAGE_STARS)
        axes.set_title(f"meta-step {at:,}", fontsize=9)
        if at == chosen:
            axes.set_title(f"meta-step {at:,}: momentum", fontsize=9, color=VERMILLION)
            axes.patch.set(edgecolor=VERMILLION, linewidth=2.0)
        if place % STAGE_COLUMNS == 0:
            axes.set_ylabel("timescale (steps)")
        if place + STAGE_COLUMNS >= count:
            axes.set_xlabel("learning rate |α|")
            axes.tick_params(labelbottom=True)
    panels[0].set(xscale="log", yscale="log")
    plain_log_ticks(panels[0].yaxis)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    return figure


@styled
def modes_over_training(
    meta_step: Int[ndarray, " checkpoints"],
    beta: Complex[ndarray, "checkpoints modes"],
    gain: Float[ndarray, "checkpoints modes"],
    chosen: int | None = None,
) -> Figure:
    """Every mode's timescale against meta-step, coloured by steady-state gain |α/(1−β)|.

    ``chosen``: a meta-step to mark with a vertical line.
    """
    figure, (axes,) = new_figure((7.0, 4.2))
    gain = np.asarray(gain, float)
    steps = timescale(np.asarray(beta))
    across = np.broadcast_to(np.asarray(meta_step)[:, None], gain.shape)
    shown = np.isfinite(steps) & (steps > SHORTEST_TIMESCALE) & np.isfinite(gain)
    order = np.argsort(gain[shown])
    top = float(np.max(gain[shown], initial=1e-30))
    points = axes.scatter(
        across[shown][order], steps[shown][order], c=gain[shown][order], s=17, cmap="Blues",
        norm=LogNorm(top * 10.0**-GAIN_DECADES, top), edgecolor=LIGHT_GREY, linewidth=0.3,
        rasterized=True,
    )  # fmt: skip
    axes.set(yscale="log", ylabel="timescale −1/ln|β| (steps)")
    plain_log_ticks(axes.yaxis)
    meta_step_axis(axes, meta_step)
    if chosen is not None:
        look: Any = {"color": VERMILLION, "linestyle": "--", "zorder": 0}
        axes.axvline(chosen, **look, label=f"meta-step {chosen:,}")
        figure.legend(loc="outside lower center")
    figure.colorbar(points, ax=axes, extend="min", label="steady-state gain |α/(1−β)|")
    return figure


def meta_step_axis(axes: Axes, meta_steps: Int[ndarray, " checkpoints"]) -> None:
    """A horizontal axis that holds ``meta_steps``, logarithmic from 1 on so that 0 is on it too.

    Ticks at powers of ten, or at the meta-steps themselves where they are few.
    """
    first, last = int(np.min(meta_steps)), max(int(np.max(meta_steps)), 1)
    axes.set_xscale("symlog", linthresh=1, linscale=0.4)
    few = len(meta_steps) <= FEW_CHECKPOINTS
    room = 1.3 if few else 1.15
    axes.set_xlim(first / room if first else -0.15, room * last)
    decades = [0, *(10**k for k in range(int(np.log10(last)) + 1))]
    ticks = np.unique(meta_steps).tolist() if few else [d for d in decades if d >= first]
    axes.set_xticks(ticks, labels=[f"{int(tick):,}" for tick in ticks])
    axes.set_xlabel("meta-step")


def _drawn(
    size: Float[ndarray, "*modes"], steps: Float[ndarray, "*modes"], largest: float
) -> Bool[ndarray, "*modes"]:
    """Which modes lie on the axes of Fig. 7b."""
    strong = size > largest * 10.0**-ALPHA_DECADES
    return strong & (steps > SHORTEST_TIMESCALE) & np.isfinite(steps)


def _stars(
    axes: Axes, tuned: MomentumPoint, theory: MomentumPoint | None, size: float = 1.0
) -> None:
    """Gold stars, ``size`` times as big: best tuned momentum's full, theory's open."""
    for label, point, face, edge, width, above in (
        ("best tuned momentum", tuned, GOLD, BLACK, 1.1, 5),
        ("optimal momentum (theory)", theory, "white", DARK_GOLD, 2.0 * size**0.5, 6),
    ):
        if point is not None:
            axes.scatter(
                [point.alpha], [timescale(np.asarray(point.beta))], s=size * 330, marker="*",
                facecolor=face, edgecolor=edge, linewidth=width, label=label, zorder=above,
            )  # fmt: skip


def _linear_stars(axes: Axes, modes: Sequence[MomentumPoint]) -> None:
    """Small green stars: the modes of the best linear optimizer, slow enough to be drawn."""
    alpha = np.array([mode.alpha for mode in modes])
    steps = timescale(np.array([mode.beta for mode in modes]))
    drawn = (alpha > 0) & (steps > SHORTEST_TIMESCALE)
    axes.scatter(
        alpha[drawn], steps[drawn], s=150, marker="*", facecolor=GREEN, edgecolor=BLACK,
        linewidth=0.8, label=f"best linear optimizer ({len(modes)} modes)", zorder=5,
    )  # fmt: skip
