"""One optimizer, whichever it is: modes, impulse response, stability, what it is like."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Complex, Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy import ndarray

from optdyn.dynamics import Identification, StabilityMap, timescale
from optdyn.figures._modes import SHORTEST_TIMESCALE
from optdyn.figures._style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    LIGHT_GREY,
    ORANGE,
    SHADE,
    SKY_BLUE,
    VERMILLION,
    WIDE,
    cross,
    new_figure,
    plain_log_ticks,
    readable,
    styled,
    unit_circle,
)

GAIN_DECADES = 5
HIGHEST_RADIUS = 1.3
SPECTRUM_BINS = 40
SAME = 1e-6
"""A relative residual that rounding makes."""


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
    gain = np.asarray(gain, float)
    figure, (plane, gains) = new_figure(WIDE, 1, 2)
    _eigenvalues(plane, beta, gain)
    _gains(gains, timescale(beta), gain, (beta.imag == 0) & (alpha.real < 0), abs(feedthrough))
    if any(axes.get_legend_handles_labels()[0] for axes in (plane, gains)):
        figure.legend(loc="outside lower center", ncols=3)
    return figure


def _eigenvalues(
    axes: Axes, beta: Complex[ndarray, " modes"], gain: Float[ndarray, " modes"]
) -> None:
    unit_circle(axes)
    cross(axes)
    leading, idle = np.arange(beta.size) == 0, gain <= 0.0
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


def _gains(
    axes: Axes,
    steps: Float[ndarray, " modes"],
    gain: Float[ndarray, " modes"],
    climbing: Bool[ndarray, " modes"],
    direct: float,
) -> None:
    """Gain against timescale; ``climbing`` modes go up the gradient, ``direct`` has no memory."""
    top = max(float(np.max(gain[np.isfinite(gain)], initial=0.0)), direct)
    floor = top * 10.0**-GAIN_DECADES
    shown = (gain > floor) & np.isfinite(gain) & (steps > SHORTEST_TIMESCALE) & np.isfinite(steps)
    axes.set(xscale="log", yscale="log", title="what each mode adds up to")
    shortest, longest = np.min(steps[shown], initial=1.0), np.max(steps[shown], initial=10.0)
    axes.set_xlim(0.8 * shortest, 1.25 * longest)
    if top > 0.0:
        values = np.append(gain[shown], direct if direct > floor else top)
        axes.set_ylim(values.min() / 10.0, values.max() * 10.0)
    else:
        words = "no response to a small gradient"
        axes.text(0.5, 0.5, words, ha="center", transform=axes.transAxes, color=GREY)
    leading = np.arange(steps.size) == 0
    for label, kind, marker, face, size in (
        ("leading mode", leading, "D", VERMILLION, 46),
        ("other modes, α > 0", ~leading & ~climbing, "o", BLUE, 26),
        ("other modes, α < 0", ~leading & climbing, "v", SKY_BLUE, 30),
    ):
        chosen = kind & shown
        if np.any(chosen):
            axes.scatter(
                steps[chosen], gain[chosen], s=size, marker=marker, facecolor=face,
                edgecolor=BLACK, linewidth=0.7, label=label, zorder=3,
            )  # fmt: skip
    if direct > floor:
        axes.axhline(direct, color=ORANGE, linestyle="--", label="feed-through (no memory)")
    axes.set(xlabel="timescale −1/ln|β| (steps)", ylabel="steady-state gain |α/(1−β)|")
    axes.grid(True)
    axes.set_axisbelow(True)
    plain_log_ticks(axes.xaxis)


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
    axes.set(xlabel="steps after the gradient", ylabel="update −Δx per unit of gradient")
    figure.legend(loc="outside lower center", ncols=2)
    return figure


@styled
def optimizer_stability(found: StabilityMap) -> Figure:
    """Spectral radius against curvature, with the stability edge and theory's optimum.

    The task's curvatures, where there are some, are a histogram under it.
    """
    if found.spectrum.size:
        figure, (axes, below) = new_figure((6.6, 5.4), 2, 1, height_ratios=[3, 1], sharex=True)
        low, high = found.spectrum.min() / 1.05, found.spectrum.max() * 1.05
        bins = np.geomspace(low, high, SPECTRUM_BINS + 1).tolist()
        below.hist(found.spectrum, bins, color=LIGHT_GREY, edgecolor="white", linewidth=0.4)
        below.set_ylabel("eigenvalues")
        below.margins(y=0.1)
    else:
        figure, (axes,) = new_figure((6.6, 4.4))
        below = axes
    top = float(np.clip(1.1 * np.max(found.radius), 1.1, HIGHEST_RADIUS))
    axes.axhspan(1.0, top, color=SHADE, zorder=0)
    axes.axhline(1.0, color=GREY, linewidth=0.9)
    axes.plot(found.curvature, found.radius, color=BLUE, linewidth=2.2, label="this optimizer")
    fastest = f"its fastest: {found.fastest_radius:.4g} at λ = {found.fastest_curvature:.3g}"
    point = ([found.fastest_curvature], [found.fastest_radius])
    axes.plot(*point, "o", color=BLUE, markersize=6, label=fastest, zorder=4)
    for rate, colour, dashes, label in (
        (found.rate, BLACK, ":", "its slowest on the range"),
        (found.descent_rate, ORANGE, "--", "best gradient descent there"),
        (found.momentum_rate, GREEN, "-.", "best momentum there (optimum)"),
    ):
        axes.plot(
            [found.low, found.high], [rate, rate], color=colour, linestyle=dashes, linewidth=1.6,
            label=f"{label}: {rate:.4g}",
        )  # fmt: skip
    axes.axvspan(found.low, found.high, color="#EFEFEF", zorder=-1)
    if np.isfinite(found.edge) and found.edge > 0:
        beyond = f"unstable beyond {found.edge:.4g}"
        axes.axvline(found.edge, color=VERMILLION, linestyle=":", label=beyond)
    smallest = min(found.fastest_radius, found.momentum_rate)
    bottom = 0.0 if smallest < 0.5 else 1.0 - 1.6 * (1.0 - smallest)
    axes.set(xscale="log", ylim=(bottom, top), xlim=(found.curvature[0], found.curvature[-1]))
    axes.set_ylabel("spectral radius ρ (per step)")
    below.set_xlabel("curvature λ")
    kind = "the task's curvatures" if found.range_given else "its best range of this width"
    axes.set_title(f"grey: {kind}, {found.low:.3g} to {found.high:.3g}", color=GREY, fontsize=9)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


@styled
def optimizer_identification(found: Identification) -> Figure:
    """Impulse response, saturation and adaptation with the nearest fit's; all residuals."""
    figure, (impulse, saturation, adaptation, residuals) = new_figure((7.8, 6.2), 2, 2)
    seen, nearest = found.responses, found.nearest
    pairs = {
        kind: (seen.of_kind(kind), nearest.updates[[k == kind for k in seen.kinds]])
        for kind in ("impulse", "constant")
    }
    levels = seen.amplitudes[: len(pairs["impulse"][0])]
    middle = len(levels) // 2
    steps = np.arange(seen.updates.shape[1])
    impulse.axhline(0.0, color=LIGHT_GREY, linewidth=0.8, zorder=0)
    _both(impulse, steps, [-rows[middle] for rows in pairs["impulse"]], "")
    impulse.set(title=f"impulse response, g = {levels[middle]:.3g}", xlabel="step")
    impulse.set_ylabel("update −Δx")
    _both(saturation, levels, [np.abs(rows[:, 0]) for rows in pairs["constant"]], "o")
    saturation.set(title="saturation (first step)", ylabel="first update |Δx|")
    _both(adaptation, levels, [np.abs(rows[:, -1]) / levels for rows in pairs["constant"]], "o")
    adaptation.set(title=f"adaptation (step {len(steps)} of constant g)")
    adaptation.set_ylabel("effective learning rate |Δx/g|")
    for axes in (saturation, adaptation):
        axes.set(xscale="log", xlabel="gradient |g|")
        if seen.still:
            continue
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        if high / low < 100.0:  # a curve that is flat but for rounding looks flat
            middle_height = np.sqrt(low * high)
            axes.set_ylim(middle_height / 10.0, middle_height * 10.0)
    _residuals(residuals, found)
    handles, _ = impulse.get_legend_handles_labels()
    labels = ["the optimizer", f"nearest: {readable(nearest.name)}"]
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    return figure


def _both(
    axes: Axes, x: Float[ndarray, " n"], curves: list[Float[ndarray, " n"]], marker: str
) -> None:
    """The optimizer's curve and the fit's."""
    for curve, color, width, dashes, size, label in (
        (curves[0], BLACK, 2.4, "-", 6, "target"),
        (curves[1], VERMILLION, 1.5, "--", 3, "fit"),
    ):
        axes.plot(
            x, curve, color=color, linewidth=width, linestyle=dashes, marker=marker,
            markersize=size, label=label,
        )  # fmt: skip


def _residuals(axes: Axes, found: Identification) -> None:
    fits = found.fits[::-1]
    for row, fit in enumerate(fits):
        bar, words = (VERMILLION,) * 2 if fit is found.nearest else (LIGHT_GREY, GREY)
        axes.barh(row, fit.residual, color=bar)
        text = "the same" if fit.residual <= SAME else f"{fit.residual:.2g}"
        axes.text(fit.residual + 0.02, row, text, va="center", fontsize=9, color=words)
    axes.set_yticks(range(len(fits)), [readable(fit.name) for fit in fits])
    axes.set(xlim=(0.0, 1.15), title="distance to each candidate")
    axes.set_xlabel("relative residual (0: the same)")
