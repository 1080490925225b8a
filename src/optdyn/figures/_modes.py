"""Figures 7a and 7b, and the modes over meta-training: what the linearisation shows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.patches import Rectangle

from optdyn.dynamics import timescale
from optdyn.figures._style import (
    BLACK,
    BLUE,
    DARK_GOLD,
    GOLD,
    GREEN,
    GREY,
    LIGHT_GREY,
    SKY_BLUE,
    VERMILLION,
    WIDE,
    new_figure,
    plain_log_ticks,
    styled,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Complex, Float, Int
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy import ndarray

    from optdyn.figures._inputs import MomentumPoint

ALPHA_DECADES = 6
GAIN_DECADES = 3
SHORTEST_TIMESCALE = 0.1
FEW_CHECKPOINTS = 4


@styled
def eigenvalue_plane(beta: Complex[ndarray, " modes"], leading: int = 0) -> Figure:
    """Fig. 7a: eigenvalues in the complex plane, and the neighbourhood of 1 enlarged.

    ``beta`` are the Jacobian's eigenvalues, ``leading`` the index of the mode to
    point out (its conjugate goes with it).
    """
    beta = np.asarray(beta, complex)
    stands_out = _with_conjugate(beta, leading)
    figure, (whole, near) = new_figure(WIDE, 1, 2)
    half = _half_width(beta, leading)
    circle = np.exp(1j * np.linspace(0, 2 * np.pi, 721))
    for axes in (whole, near):
        axes.axhline(0, color="#E4E4E4", linewidth=0.8, zorder=0)
        axes.axvline(0, color="#E4E4E4", linewidth=0.8, zorder=0)
        axes.plot(circle.real, circle.imag, color=GREY, linewidth=1.1, label="unit circle")
        axes.scatter(
            beta.real[~stands_out],
            beta.imag[~stands_out],
            s=24,
            color=BLUE,
            alpha=0.75,
            edgecolor="white",
            linewidth=0.4,
            label="other modes",
            zorder=3,
        )
        axes.scatter(
            beta.real[stands_out],
            beta.imag[stands_out],
            s=80,
            color=VERMILLION,
            marker="D",
            edgecolor=BLACK,
            linewidth=0.8,
            label="leading mode",
            zorder=4,
        )
        axes.set_xlabel("real part of β")
        axes.set_ylabel("imaginary part of β")
        axes.set_aspect("equal")
    reach = max(1.2, 1.1 * float(np.max(np.abs(beta))))
    whole.set(xlim=(-reach, reach), ylim=(-reach, reach), title="all eigenvalues")
    near.set(xlim=(1 - 1.7 * half, 1 + 0.3 * half), ylim=(-half, half), title="near 1, enlarged")
    near.locator_params(nbins=5)
    whole.add_patch(
        Rectangle((1 - 1.7 * half, -half), 2 * half, 2 * half, fill=False, linewidth=0.9)
    )
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
    leading: int = 0,
) -> Figure:
    """Fig. 7b: each mode as momentum, timescale against learning rate, both logarithmic.

    ``tuned`` is the best momentum found by search, ``theory`` the optimal one for
    the task's range of curvature, where that is known, and ``linear`` the modes of the best
    linear optimizer. Modes beyond the axes are counted in a note.
    """
    beta, alpha = np.asarray(beta, complex), np.asarray(alpha, complex)
    figure, (axes,) = new_figure((5.8, 5.0))
    size, steps = np.abs(alpha), timescale(beta)
    oscillating = np.abs(beta.imag) > 1e-9 * np.maximum(np.abs(beta), 1e-300)
    negative = ~oscillating & (alpha.real < 0)
    drawn = (
        (size > size.max() * 10.0**-ALPHA_DECADES)
        & (steps > SHORTEST_TIMESCALE)
        & np.isfinite(steps)
    )
    others = drawn & (np.arange(beta.size) != leading)
    kinds = (
        ("real, α > 0", ~oscillating & ~negative, "o", BLUE),
        ("real, α < 0", negative, "v", "white"),
        ("conjugate pair", oscillating, "s", SKY_BLUE),
    )
    for label, chosen, marker, face in kinds:
        if np.any(chosen & others):
            axes.scatter(
                size[chosen & others],
                steps[chosen & others],
                s=34,
                marker=marker,
                facecolor=face,
                edgecolor=BLUE,
                linewidth=0.9,
                alpha=0.85,
                label=f"mode, {label}",
                zorder=3,
            )
    references(axes, tuned, theory)
    if linear:
        _linear_stars(axes, linear)
    lead = (size[[leading]], steps[[leading]])
    axes.scatter(*lead, s=480, facecolor="none", edgecolor=VERMILLION, linewidth=2.0, zorder=4)
    axes.scatter(
        *lead,
        s=46,
        facecolor=VERMILLION,
        edgecolor=BLACK,
        linewidth=0.8,
        marker="D",
        label="leading mode (ringed)",
        zorder=7,
    )
    axes.set(xscale="log", yscale="log")
    axes.set_xlabel("learning rate |α|")
    axes.set_ylabel("momentum timescale −1/ln|β| (steps)")
    axes.grid(True)
    axes.set_axisbelow(True)
    axes.margins(0.09)
    plain_log_ticks(axes.yaxis)
    if not drawn.all():
        axes.set_title(
            f"{np.sum(~drawn)} of {beta.size} modes lie beyond the axes "
            f"(|α| < 10⁻⁶ of the largest, or |β| ≥ 1, or β near 0)",
            fontsize=9,
            color=GREY,
        )
    figure.legend(loc="outside lower center", ncols=2, markerscale=0.75)
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
        across[shown][order],
        steps[shown][order],
        c=gain[shown][order],
        s=17,
        cmap="Blues",
        edgecolor=LIGHT_GREY,
        linewidth=0.3,
        norm=LogNorm(top * 10.0**-GAIN_DECADES, top),
        rasterized=True,
    )
    axes.set_yscale("log")
    plain_log_ticks(axes.yaxis)
    meta_step_axis(axes, meta_step)
    axes.set_ylabel("timescale −1/ln|β| (steps)")
    if chosen is not None:
        axes.axvline(
            chosen, color=VERMILLION, linestyle="--", zorder=0, label=f"meta-step {chosen:,}"
        )
        figure.legend(loc="outside lower center")
    bar = figure.colorbar(points, ax=axes, extend="min")
    bar.set_label("steady-state gain |α/(1−β)|")
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


def _with_conjugate(beta: Complex[ndarray, " modes"], leading: int) -> ndarray:
    """Marks the leading mode and, where it is complex, its conjugate."""
    chosen: ndarray = np.isclose(beta, np.conj(beta[leading])) & (beta.imag != 0)
    chosen[leading] = True
    return chosen


def _half_width(beta: Complex[ndarray, " modes"], leading: int) -> float:
    """Half the side of a square about 1 that shows the leading mode and the next slowest."""
    distance = np.sort(np.abs(1 - beta))
    nearby = distance[min(4, distance.size - 1)]
    return float(np.clip(max(abs(1 - beta[leading]), nearby), 0.01, 0.5))


def _linear_stars(axes: Axes, modes: Sequence[MomentumPoint]) -> None:
    """Small green stars: the modes of the best linear optimizer, slow enough to be drawn."""
    points = [(mode.alpha, float(timescale(np.asarray(mode.beta)))) for mode in modes]
    drawn = [(alpha, steps) for alpha, steps in points if alpha > 0 and steps > SHORTEST_TIMESCALE]
    axes.scatter(
        [alpha for alpha, _ in drawn],
        [steps for _, steps in drawn],
        s=150,
        marker="*",
        facecolor=GREEN,
        edgecolor=BLACK,
        linewidth=0.8,
        label=f"best linear optimizer ({len(modes)} modes)",
        zorder=5,
    )


def references(
    axes: Axes, tuned: MomentumPoint, theory: MomentumPoint | None, size: float = 1.0
) -> None:
    """Gold stars, ``size`` times as big: best tuned momentum's full, theory's open."""
    stars = (
        ("best tuned momentum", tuned, GOLD, BLACK, 1.1),
        ("optimal momentum (theory)", theory, "white", DARK_GOLD, 2.0 * size**0.5),
    )
    for label, point, face, edge, width in stars:
        if point is None:
            continue
        axes.scatter(
            [point.alpha],
            [timescale(np.asarray(point.beta))],
            s=size * 330,
            marker="*",
            facecolor=face,
            edgecolor=edge,
            linewidth=width,
            label=label,
            zorder=5 if point is tuned else 6,
        )
