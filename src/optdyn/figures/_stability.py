"""The stability map: an optimizer on quadratics of every curvature."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from optdyn.figures._style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    LIGHT_GREY,
    ORANGE,
    VERMILLION,
    new_figure,
    styled,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from optdyn.dynamics import StabilityMap

HIGHEST_RADIUS = 1.3
SPECTRUM_BINS = 40


@styled
def optimizer_stability(found: StabilityMap) -> Figure:
    """Spectral radius against curvature, with the stability edge and theory's optimum.

    The task's curvatures, where there are some, are a histogram under it.
    """
    if found.spectrum.size:
        figure, (axes, below) = new_figure((6.6, 5.4), 2, 1, height_ratios=[3, 1], sharex=True)
        _spectrum(below, found)
    else:
        figure, (axes,) = new_figure((6.6, 4.4))
        below = axes
    top = float(np.clip(1.1 * np.max(found.radius), 1.1, HIGHEST_RADIUS))
    axes.axhspan(1.0, top, color="#F7E3DA", zorder=0)
    axes.axhline(1.0, color=GREY, linewidth=0.9)
    axes.plot(found.curvature, found.radius, color=BLUE, linewidth=2.2, label="this optimizer")
    axes.plot(
        [found.fastest_curvature],
        [found.fastest_radius],
        "o",
        color=BLUE,
        markersize=6,
        label=f"its fastest: {found.fastest_radius:.4g} at λ = {found.fastest_curvature:.3g}",
        zorder=4,
    )
    for rate, colour, dashes, label in (
        (found.rate, BLACK, ":", "its slowest on the range"),
        (found.descent_rate, ORANGE, "--", "best gradient descent there"),
        (found.momentum_rate, GREEN, "-.", "best momentum there (optimum)"),
    ):
        axes.plot(
            [found.low, found.high],
            [rate, rate],
            color=colour,
            linestyle=dashes,
            linewidth=1.6,
            label=f"{label}: {rate:.4g}",
        )
    axes.axvspan(found.low, found.high, color="#EFEFEF", zorder=-1)
    if np.isfinite(found.edge) and found.edge > 0:
        axes.axvline(
            found.edge, color=VERMILLION, linestyle=":", label=f"unstable beyond {found.edge:.4g}"
        )
    smallest = min(found.fastest_radius, found.momentum_rate)
    bottom = 0.0 if smallest < 0.5 else 1.0 - 1.6 * (1.0 - smallest)
    axes.set(xscale="log", ylim=(bottom, top), xlim=(found.curvature[0], found.curvature[-1]))
    axes.set_ylabel("spectral radius ρ (per step)")
    below.set_xlabel("curvature λ")
    kind = "the task's curvatures" if found.range_given else "its best range of this width"
    axes.set_title(f"grey: {kind}, {found.low:.3g} to {found.high:.3g}", color=GREY, fontsize=9)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def _spectrum(axes: Axes, found: StabilityMap) -> None:
    low, high = found.spectrum.min(), found.spectrum.max()
    edges = np.geomspace(low / 1.05, high * 1.05, SPECTRUM_BINS + 1)
    axes.hist(
        found.spectrum, bins=edges.tolist(), color=LIGHT_GREY, edgecolor="white", linewidth=0.4
    )
    axes.set_ylabel("eigenvalues")
    axes.margins(y=0.1)
