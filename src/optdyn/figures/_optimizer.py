"""An optimizer's modes and its impulse response, whatever optimizer it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from optdyn.dynamics import timescale
from optdyn.figures._modes import SHORTEST_TIMESCALE
from optdyn.figures._style import (
    BLACK,
    BLUE,
    GREY,
    ORANGE,
    SKY_BLUE,
    VERMILLION,
    WIDE,
    new_figure,
    plain_log_ticks,
    styled,
)

if TYPE_CHECKING:
    from jaxtyping import Complex, Float
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy import ndarray

GAIN_DECADES = 5
MODES_SHOWN = 3


@styled
def optimizer_modes(
    beta: Complex[ndarray, " modes"],
    alpha: Complex[ndarray, " modes"],
    gain: Float[ndarray, " modes"],
    feedthrough: float,
) -> Figure:
    """Eigenvalues in the complex plane, and each mode's timescale with what it adds up to.

    ``gain`` is the steady-state gain |α/(1−β)|; modes stand in its falling order, as
    `optdyn.eigenmodes` gives them. The feed-through is a learning rate without memory, drawn
    as a horizontal line.
    """
    beta, alpha = np.asarray(beta, complex), np.asarray(alpha, complex)
    figure, (plane, gains) = new_figure(WIDE, 1, 2)
    _eigenvalues(plane, beta, gain)
    _gains(gains, beta, alpha, np.asarray(gain, float), feedthrough)
    if any(axes.get_legend_handles_labels()[0] for axes in (plane, gains)):
        figure.legend(loc="outside lower center", ncols=3)
    return figure


@styled
def optimizer_impulse(
    linear: Float[ndarray, " steps"],
    modes: Float[ndarray, "modes steps"],
    labels: list[str],
    feedthrough: float,
) -> Figure:
    """The update −Δx at each step after one unit gradient, and the parts that modes have in it.

    ``linear``: the linearised optimizer's response Δx; ``modes``: those of its
    leading modes, each with its label.
    """
    figure, (axes,) = new_figure((6.4, 3.8))
    steps = np.arange(len(linear))
    axes.axhline(0.0, color=GREY, linewidth=0.7)
    axes.plot(steps, -np.asarray(linear), color=BLACK, linewidth=2.4, label="all of it")
    styles = ((BLUE, "--"), (ORANGE, "-."), (SKY_BLUE, ":"))
    for (colour, dashes), part, label in zip(styles, modes, labels, strict=False):
        axes.plot(steps, -part, color=colour, linestyle=dashes, label=label)
    if abs(feedthrough) > 1e-9 * np.max(np.abs(linear), initial=1e-300):
        axes.plot([0], [feedthrough], "D", color=VERMILLION, label="feed-through", zorder=4)
    axes.set_xlabel("steps after the gradient")
    axes.set_ylabel("update −Δx per unit of gradient")
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def _eigenvalues(
    axes: Axes, beta: Complex[ndarray, " modes"], gain: Float[ndarray, " modes"]
) -> None:
    circle = np.exp(1j * np.linspace(0, 2 * np.pi, 721))
    axes.plot(circle.real, circle.imag, color=GREY, linewidth=1.1)
    for spine in (axes.axhline, axes.axvline):
        spine(0, color="#E4E4E4", linewidth=0.8, zorder=0)
    leading = np.arange(beta.size) == 0
    idle = np.asarray(gain) <= 0.0
    undriven = "not driven by the gradient" if idle.any() else None
    for chosen, face, marker, size, label in (
        (idle, "white", "o", 26, undriven),
        (~idle & ~leading, BLUE, "o", 26, None),
        (~idle & leading, VERMILLION, "D", 46, None),
    ):
        axes.scatter(
            beta.real[chosen], beta.imag[chosen], s=size, marker=marker, facecolor=face,
            edgecolor=BLACK, linewidth=0.7, zorder=3, label=label,
        )  # fmt: skip
    reach = max(1.15, 1.1 * float(np.max(np.abs(beta), initial=0.0)))
    axes.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", title="eigenvalues")
    axes.set_xlabel("real part of β")
    axes.set_ylabel("imaginary part of β")


def _gains(
    axes: Axes,
    beta: Complex[ndarray, " modes"],
    alpha: Complex[ndarray, " modes"],
    gain: Float[ndarray, " modes"],
    feedthrough: float,
) -> None:
    steps = timescale(beta)
    direct = abs(feedthrough)
    top = max(float(np.max(gain[np.isfinite(gain)], initial=0.0)), direct)
    floor = top * 10.0**-GAIN_DECADES
    shown = (gain > floor) & np.isfinite(gain) & (steps > SHORTEST_TIMESCALE) & np.isfinite(steps)
    climbing = (np.abs(beta.imag) == 0) & (alpha.real < 0)
    leading = np.arange(beta.size) == 0
    kinds = (
        ("leading mode", leading, "D", VERMILLION, 46),
        ("other modes, α > 0", ~leading & ~climbing, "o", BLUE, 26),
        ("other modes, α < 0", ~leading & climbing, "v", SKY_BLUE, 30),
    )
    axes.set(xscale="log", yscale="log", title="what each mode adds up to")
    shortest, longest = np.min(steps[shown], initial=1.0), np.max(steps[shown], initial=10.0)
    axes.set_xlim(0.8 * shortest, 1.25 * longest)
    if top > 0.0:
        values = np.append(gain[shown], direct if direct > floor else top)
        axes.set_ylim(values.min() / 10.0, values.max() * 10.0)
    else:
        axes.text(0.5, 0.5, "no response to a small gradient", ha="center",
                  transform=axes.transAxes, color=GREY)  # fmt: skip
    for label, chosen, marker, face, size in kinds:
        if np.any(chosen & shown):
            axes.scatter(
                steps[chosen & shown], gain[chosen & shown], s=size, marker=marker,
                facecolor=face, edgecolor=BLACK, linewidth=0.7, label=label, zorder=3,
            )  # fmt: skip
    if direct > floor:
        axes.axhline(direct, color=ORANGE, linestyle="--", label="feed-through (no memory)")
    axes.set_xlabel("timescale −1/ln|β| (steps)")
    axes.set_ylabel("steady-state gain |α/(1−β)|")
    axes.grid(True)
    axes.set_axisbelow(True)
    plain_log_ticks(axes.xaxis)
