"""Figures 2a to 2c: what the tasks look like."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.ticker import LogFormatterMathtext

from optdyn.figures._style import BLACK, BLUE, GOLD, ORANGE, VERMILLION, new_figure, styled

if TYPE_CHECKING:
    from jaxtyping import Float
    from matplotlib.figure import Figure
    from numpy import ndarray

HISTOGRAM_BINS = 40
SURFACE_DECADES = 6
LOWEST_CONTOUR = 0.1
"""The valley of the decade below is narrower than the points of a grid are apart."""


@styled
def condition_numbers(values: Float[ndarray, " problems"]) -> Figure:
    """Fig. 2a: histogram of the condition numbers of AᵀA, logarithmic, median marked."""
    values = np.asarray(values)
    figure, (axes,) = new_figure()
    edges = np.geomspace(values.min(), values.max() * (1 + 1e-9), HISTOGRAM_BINS + 1)
    axes.hist(values, bins=edges.tolist(), color=BLUE, edgecolor="white", linewidth=0.4)
    median = float(np.median(values))
    axes.axvline(median, color=VERMILLION, linestyle="--", label=f"median: {median:.3g}")
    axes.set_xscale("log")
    axes.set_xlabel("condition number of AᵀA (largest over smallest eigenvalue)")
    axes.set_ylabel(f"problems (of {values.size:,})")
    figure.legend(loc="outside lower center")
    return figure


@styled
def rosenbrock_surface(
    x: Float[ndarray, " columns"],
    y: Float[ndarray, " rows"],
    loss: Float[ndarray, "rows columns"],
    minimum: tuple[float, float],
) -> Figure:
    """Fig. 2b: the loss over the square of starting points, colour on a logarithmic scale."""
    figure, (axes,) = new_figure((5.4, 4.4))
    top = float(np.max(loss))
    norm = LogNorm(top * 10.0**-SURFACE_DECADES, top)
    image = axes.pcolormesh(
        x, y, loss, norm=norm, cmap="viridis", shading="gouraud", rasterized=True
    )
    whole = 10.0 ** np.arange(np.log10(LOWEST_CONTOUR), np.log10(top))
    axes.contour(x, y, loss, levels=whole, colors="white", linewidths=0.5, alpha=0.7)
    axes.plot(
        *minimum,
        marker="*",
        markersize=17,
        color=GOLD,
        markeredgecolor=BLACK,
        linestyle="none",
        label=f"minimum at ({minimum[0]:g}, {minimum[1]:g})",
    )
    axes.set_xlabel("x")
    axes.set_ylabel("y")
    axes.set_aspect("equal")
    figure.legend(loc="outside lower center")
    bar = figure.colorbar(image, ax=axes, extend="min", format=LogFormatterMathtext())
    bar.set_label("loss f(x, y)")
    return figure


@styled
def two_moons_data(
    features: Float[ndarray, "points 2"], labels: Float[ndarray, " points"]
) -> Figure:
    """Fig. 2c: the points to be classified; the two classes differ in colour and marker."""
    figure, (axes,) = new_figure((5.6, 3.4))
    for value, color, marker in ((0, BLUE, "o"), (1, ORANGE, "^")):
        chosen = features[np.asarray(labels) == value]
        axes.scatter(
            chosen[:, 0],
            chosen[:, 1],
            s=16,
            color=color,
            marker=marker,
            edgecolor="white",
            linewidth=0.3,
            label=f"class {value} ({len(chosen)} points)",
        )
    axes.set_xlabel("first feature")
    axes.set_ylabel("second feature")
    axes.set_aspect("equal")
    figure.legend(loc="outside lower center", ncols=2)
    return figure
