"""Fig. 7b again for many stored checkpoints: how the modes emerge in meta-training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from optdyn.dynamics import timescale
from optdyn.figures._modes import ALPHA_DECADES, SHORTEST_TIMESCALE, references
from optdyn.figures._style import BLACK, BLUE, VERMILLION, new_figure, plain_log_ticks, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from optdyn.figures._inputs import MomentumPoint, StoredModes

COLUMNS = 4
REFERENCE_SIZE = 0.4


@styled
def mode_stages(
    stages: Sequence[StoredModes],
    tuned: MomentumPoint,
    theory: MomentumPoint | None,
    chosen: int | None = None,
) -> Figure:
    """Timescale against learning rate, one small panel a checkpoint, on the same axes.

    ``chosen``: the meta-step whose panel is framed, as the stage of momentum.
    """
    columns = min(COLUMNS, len(stages))
    rows = -(-len(stages) // columns)
    size = (2.1 * columns + 0.8, 2.0 * rows + 1.0)
    figure, panels = new_figure(size, rows, columns, sharex=True, sharey=True)
    largest = max(float(np.max(np.abs(stage.alpha))) for stage in stages)
    for axes, stage in zip(panels, stages, strict=False):
        _draw_stage(axes, stage, largest)
        references(axes, tuned, theory, REFERENCE_SIZE)
        axes.set_title(f"meta-step {stage.meta_step:,}", fontsize=9)
        if stage.meta_step == chosen:
            axes.set_title(f"meta-step {stage.meta_step:,}: momentum", fontsize=9, color=VERMILLION)
            axes.patch.set(edgecolor=VERMILLION, linewidth=2.0)
    panels[0].set(xscale="log", yscale="log")
    plain_log_ticks(panels[0].yaxis)
    for spare in panels[len(stages) :]:
        spare.remove()
    for position, axes in enumerate(panels[: len(stages)]):
        if position % columns == 0:
            axes.set_ylabel("timescale (steps)")
        if position + columns >= len(stages):
            axes.set_xlabel("learning rate |α|")
            axes.tick_params(labelbottom=True)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    return figure


def _draw_stage(axes: Axes, stage: StoredModes, largest: float) -> None:
    size, steps = np.abs(stage.alpha), timescale(stage.beta)
    shown = (
        (size > largest * 10.0**-ALPHA_DECADES) & (steps > SHORTEST_TIMESCALE) & np.isfinite(steps)
    )
    lead = np.arange(size.size) == 0
    axes.scatter(
        size[shown & ~lead], steps[shown & ~lead], s=12, color=BLUE, alpha=0.7, label="other modes"
    )
    axes.scatter(
        size[shown & lead],
        steps[shown & lead],
        s=46,
        color=VERMILLION,
        edgecolor=BLACK,
        linewidth=0.8,
        marker="D",
        label="leading mode",
        zorder=7,
    )
    axes.grid(True)
    axes.set_axisbelow(True)
    axes.margins(0.1)
