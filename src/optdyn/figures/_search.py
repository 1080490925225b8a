"""Figures 10 to 12: every hyperparameter combination tried."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.ticker import LogFormatterSciNotation

from optdyn.figures._style import BLACK, GOLD, LIGHT_GREY, new_figure, readable, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from optdyn.figures._inputs import SearchPanel

COLOUR_RANGE = 100.0


@styled
def hyperparameter_searches(panels: Sequence[SearchPanel]) -> Figure:
    """Figs. 10 to 12: learning rate against the distance of a decay constant from 1.

    One colour scale for all panels, logarithmic, from the best meta-objective of
    all (purple) to 100 times it; the selected combination of each panel is
    starred and written above it, those that diverged are grey crosses.
    """
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure, grid = new_figure((4.1 * columns + 0.6, 3.3 * rows + 0.5), rows, columns)
    best = min(float(np.nanmin(_finite(panel))) for panel in panels)
    worst = max(float(np.nanmax(_finite(panel))) for panel in panels)
    top = max(min(worst, COLOUR_RANGE * best), 1.01 * best)
    norm = LogNorm(best, top)
    for axes, panel in zip(grid, panels, strict=False):
        _draw_panel(axes, panel, norm)
    for spare in grid[len(panels) :]:
        spare.remove()
    used = grid[: len(panels)]
    bar = figure.colorbar(
        used[0].collections[1],
        ax=used,
        extend="max" if worst > top else "neither",
        format=LogFormatterSciNotation(labelOnlyBase=top > 10 * best),
        shrink=0.7,
    )
    bar.set_label("meta-objective (purple: best)")
    entries = {
        label: handle
        for axes in used
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=2)
    return figure


def _draw_panel(axes: Axes, panel: SearchPanel, norm: LogNorm) -> None:
    """One search: diverged below, then from worst to best so that the best are seen."""
    rate, objective = np.asarray(panel.learning_rate), _finite(panel)
    distance = 1.0 - np.asarray(panel.decay)
    diverged = np.isnan(objective)
    axes.scatter(
        rate[diverged],
        distance[diverged],
        s=14,
        marker="x",
        color=LIGHT_GREY,
        linewidth=0.8,
        rasterized=True,
        label="diverged" if diverged.any() else None,
    )
    order = np.argsort(-objective[~diverged])
    axes.scatter(
        rate[~diverged][order],
        distance[~diverged][order],
        c=objective[~diverged][order],
        s=14,
        cmap="viridis",
        norm=norm,
        rasterized=True,
    )
    axes.scatter(
        rate[[panel.best]],
        distance[[panel.best]],
        s=230,
        marker="*",
        facecolor=GOLD,
        edgecolor=BLACK,
        linewidth=1.0,
        zorder=5,
        label="selected as best",
    )
    axes.set(xscale="log", yscale="log")
    axes.set_xlabel("learning rate α")
    axes.set_ylabel(f"1 − {panel.symbol}")
    axes.set_title(
        f"{readable(panel.optimizer)}, best: α = {rate[panel.best]:.3g}, "
        f"{panel.symbol} = {panel.decay[panel.best]:.4g}"
    )


def _finite(panel: SearchPanel) -> np.ndarray:
    """The meta-objectives with NaN wherever a run diverged."""
    objective = np.asarray(panel.meta_objective, float)
    return np.where(np.isfinite(objective), objective, np.nan)
