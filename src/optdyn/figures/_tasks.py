"""Figures 2a to 2c and 10 to 12: what the tasks look like, and every search on them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatterMathtext, LogFormatterSciNotation
from numpy import ndarray

from optdyn.figures._style import (
    BLACK,
    BLUE,
    GOLD,
    LIGHT_GREY,
    ORANGE,
    VERMILLION,
    finite,
    new_figure,
    readable,
    styled,
    tiles,
)
from optdyn.search import SearchTable, best

HISTOGRAM_BINS = 40
SURFACE_DECADES = 6
LOWEST_CONTOUR = 0.1
"""The valley of the decade below is narrower than the points of a grid are apart."""
COLOUR_RANGE = 100.0
SYMBOLS = {"beta": "β", "gamma": "γ", "beta1": "β₁", "beta2": "β₂"}


@styled
def condition_numbers(values: Float[ndarray, " problems"]) -> Figure:
    """Fig. 2a: histogram of the condition numbers of AᵀA, logarithmic, median marked."""
    values = np.asarray(values)
    figure, (axes,) = new_figure()
    edges = np.geomspace(values.min(), values.max() * (1 + 1e-9), HISTOGRAM_BINS + 1)
    axes.hist(values, bins=edges.tolist(), color=BLUE, edgecolor="white", linewidth=0.4)
    median = float(np.median(values))
    axes.axvline(median, color=VERMILLION, linestyle="--", label=f"median: {median:.3g}")
    axes.set(xscale="log", ylabel=f"problems (of {values.size:,})")
    axes.set_xlabel("condition number of AᵀA (largest over smallest eigenvalue)")
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
    image = axes.pcolormesh(
        x, y, loss, norm=LogNorm(top * 10.0**-SURFACE_DECADES, top), cmap="viridis",
        shading="gouraud", rasterized=True,
    )  # fmt: skip
    whole = 10.0 ** np.arange(np.log10(LOWEST_CONTOUR), np.log10(top))
    axes.contour(x, y, loss, levels=whole, colors="white", linewidths=0.5, alpha=0.7)
    axes.plot(
        *minimum, marker="*", markersize=17, color=GOLD, markeredgecolor=BLACK, linestyle="none",
        label=f"minimum at ({minimum[0]:g}, {minimum[1]:g})",
    )  # fmt: skip
    axes.set(xlabel="x", ylabel="y", aspect="equal")
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
            chosen[:, 0], chosen[:, 1], s=16, color=color, marker=marker, edgecolor="white",
            linewidth=0.3, label=f"class {value} ({len(chosen)} points)",
        )  # fmt: skip
    axes.set(xlabel="first feature", ylabel="second feature", aspect="equal")
    figure.legend(loc="outside lower center", ncols=2)
    return figure


@styled
def hyperparameter_searches(tables: Sequence[SearchTable]) -> Figure:
    """Figs. 10 to 12: learning rate against the distance of a decay constant from 1.

    One panel for each decay constant of each search. One colour scale for all panels,
    logarithmic, from the best meta-objective of all (purple) to 100 times it; the selected
    combination of each panel is starred and written above it, those that diverged are grey
    crosses.
    """
    panels = [(table, name) for table in tables for name in table.grid.names if name != "alpha"]
    figure, grid = tiles(len(panels), 2, (4.1, 3.3), (0.6, 0.5))
    lowest = min(float(np.nanmin(finite(table.scores))) for table in tables)
    worst = max(float(np.nanmax(finite(table.scores))) for table in tables)
    top = max(min(worst, COLOUR_RANGE * lowest), 1.01 * lowest)
    norm = LogNorm(lowest, top)
    for axes, (table, name) in zip(grid, panels, strict=True):
        _draw_search(axes, table, name, norm)
    bar = figure.colorbar(
        grid[0].collections[1], ax=grid, extend="max" if worst > top else "neither", shrink=0.7,
        format=LogFormatterSciNotation(labelOnlyBase=top > 10 * lowest),
    )  # fmt: skip
    bar.set_label("meta-objective (purple: best)")
    found = [axes.get_legend_handles_labels() for axes in grid]
    entries = {n: h for handles, names in found for h, n in zip(handles, names, strict=True)}
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=2)
    return figure


def _draw_search(axes: Axes, table: SearchTable, name: str, norm: LogNorm) -> None:
    """One search: diverged below, then from worst to best so that the best are seen."""
    values, objective, selected = table.hyperparameters(), finite(table.scores), best(table).row
    rate, decay, symbol = values["alpha"], values[name], SYMBOLS.get(name, name)
    distance = 1.0 - decay
    diverged = np.isnan(objective)
    axes.scatter(
        rate[diverged], distance[diverged], s=14, marker="x", color=LIGHT_GREY, linewidth=0.8,
        rasterized=True, label="diverged" if diverged.any() else None,
    )  # fmt: skip
    order = np.argsort(-objective)[: np.sum(~diverged)]  # NaN is last
    axes.scatter(
        rate[order], distance[order], c=objective[order], s=14, cmap="viridis", norm=norm,
        rasterized=True,
    )  # fmt: skip
    axes.scatter(
        rate[[selected]], distance[[selected]], s=230, marker="*", facecolor=GOLD, edgecolor=BLACK,
        linewidth=1.0, zorder=5, label="selected as best",
    )  # fmt: skip
    axes.set(xscale="log", yscale="log", xlabel="learning rate α", ylabel=f"1 − {symbol}")
    axes.set_title(
        f"{readable(table.settings.baseline)}, best: α = {rate[selected]:.3g}, "
        f"{symbol} = {decay[selected]:.4g}"
    )
