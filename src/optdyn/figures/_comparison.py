"""Figures 7c and 9 and the loss curves: optimizers set side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from optdyn.figures._inputs import Curve
from optdyn.figures._style import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    new_figure,
    optimizer_style,
    plain_log_ticks,
    readable,
    styled,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from optdyn.figures._inputs import Score

LEARNED = "learned"
WIDE_RATIO = 8.0
DIVERGED = 10.0


@styled
def loss_curves(curves: Sequence[Curve], relative: bool = False) -> Figure:
    """Mean loss ± standard error against iteration, one line an optimizer.

    ``relative``: each problem's losses are in units of its first.
    """
    figure, (axes,) = new_figure((6.4, 4.2))
    for position, curve in enumerate(curves):
        look = optimizer_style(curve.name, position)
        _draw_curve(axes, curve, readable(curve.name), look["color"], look["linestyle"])
    _loss_axes(axes, relative)
    figure.legend(loc="outside lower center", ncols=min(4, len(curves)))
    return figure


@styled
def reduction_losses(full: Curve, reduced: Curve, tuned: Curve, relative: bool = False) -> Figure:
    """Fig. 7c: the full learned optimizer, the same cut down to one mode, tuned momentum.

    ``relative`` as for `loss_curves`. A mode that diverges on its own leaves the
    axes at ten times the highest loss of the other two, and is not drawn after that.
    """
    ceiling = DIVERGED * float(np.nanmax([full.mean, tuned.mean]))
    beyond = np.flatnonzero(~(reduced.mean <= ceiling))
    diverges = beyond.size > 0
    followed = slice(beyond[0] + 1 if diverges else None)
    reduced = Curve(reduced.name, reduced.mean[followed], reduced.standard_error[followed])
    alone = "its leading mode alone" + (" (diverges)" if diverges else "")
    figure, (axes,) = new_figure((5.4, 4.6))
    _draw_curve(axes, full, "full learned optimizer", BLUE, "-", linewidth=2.6)
    _draw_curve(axes, reduced, alone, ORANGE, "--")
    _draw_curve(axes, tuned, "best tuned momentum", GREEN, ":")
    _loss_axes(axes, relative)
    if diverges:
        drawn = np.concatenate([full.mean, tuned.mean])
        axes.set_ylim(0.5 * float(np.min(drawn[drawn > 0])), ceiling)
    figure.legend(loc="outside lower center", title="mean ± standard error", title_fontsize=9)
    return figure


@styled
def performance_summary(tasks: Mapping[str, Sequence[Score]]) -> Figure:
    """Fig. 9: meta-objective on unseen problems, one panel a task, mean ± standard error."""

    def draw(axes: Axes, scores: Sequence[Score]) -> None:
        numbers = [
            f"{s.mean:#.3g} ± {s.standard_error:.2g}" if np.isfinite(s.mean) else "diverged"
            for s in scores
        ]
        _draw_scores(axes, scores, numbers, errors=1.0)
        best = [s.mean for s in scores if s.name == LEARNED]
        for level in best:
            axes.axvline(level, color=BLUE, linestyle=":", linewidth=1.0, zorder=0)
        if _is_wide([s.mean for s in scores]):
            axes.set_xscale("log")
            plain_log_ticks(axes.xaxis)
        else:
            axes.set_xlim(left=0)
            axes.locator_params(axis="x", nbins=4)
        axes.set_xlabel("meta-objective (± standard error)")

    return _panels(tasks, draw)


@styled
def paired_differences(tasks: Mapping[str, Sequence[Score]]) -> Figure:
    """Fig. 9, paired: each baseline's meta-objective minus the learned optimizer's.

    Scores are means over the same problems; bars span ± 2 standard errors, so
    that one which stays right of zero tells a baseline that is beaten.
    """

    def draw(axes: Axes, scores: Sequence[Score]) -> None:
        numbers = [
            f"{s.mean:#.3g} ({_in_errors(s)})" if np.isfinite(s.mean) else "diverged"
            for s in scores
        ]
        _draw_scores(axes, scores, numbers, errors=2.0)
        axes.axvline(0, color=GREY, linewidth=1.4)
        sizes = [abs(s.mean) for s in scores]
        label = "baseline minus learned (± 2 s.e.)"
        if _is_wide(sizes):
            _symmetric_log(axes, min(sizes))
            label += ";\nshaded: linear, beyond it logarithmic"
        axes.set_xlabel(label)

    return _panels(tasks, draw)


def _panels(tasks: Mapping[str, Sequence[Score]], draw: Any) -> Figure:
    """One panel a task, two beside each other."""
    columns = min(2, len(tasks))
    rows = -(-len(tasks) // columns)
    longest = max(len(scores) for scores in tasks.values())
    size = (4.6 * columns if columns > 1 else 6.0, rows * (1.1 + 0.28 * longest))
    figure, panels = new_figure(size, rows, columns)
    for axes, (task, scores) in zip(panels, tasks.items(), strict=False):
        draw(axes, scores)
        axes.set_title(readable(task))
    for spare in panels[len(tasks) :]:
        spare.remove()
    return figure


def _draw_scores(
    axes: Axes, scores: Sequence[Score], numbers: Sequence[str], errors: float
) -> None:
    """One row a score, the first on top: marker, error bar and, to the right, its number."""
    for row, score in enumerate(scores):
        look = optimizer_style(score.name, row)
        if np.isfinite(score.mean):
            axes.errorbar(
                score.mean,
                row,
                xerr=errors * score.standard_error,
                color=look["color"],
                marker=look["marker"],
                markersize=5.5,
                capsize=4,
                linewidth=1.6,
            )
        axes.annotate(
            numbers[row],
            (1.02, row),
            xycoords=axes.get_yaxis_transform(),
            fontsize=9,
            va="center",
            annotation_clip=False,
        )
    axes.set_yticks(range(len(scores)), labels=[readable(s.name) for s in scores])
    axes.set_ylim(len(scores) - 0.5, -0.5)
    axes.margins(x=0.1)
    axes.grid(True, axis="x")
    axes.set_axisbelow(True)


def _is_wide(values: Sequence[float]) -> bool:
    """Whether positive numbers differ so much that a linear axis would hide the small ones."""
    finite = [value for value in values if np.isfinite(value)]
    return bool(finite) and max(finite) > WIDE_RATIO * min(finite) > 0


def _in_errors(score: Score) -> str:
    """A mean in units of its standard error."""
    if score.standard_error == 0:
        return "exact"
    return f"{score.mean / score.standard_error:.1f} s.e."


def _symmetric_log(axes: Axes, linear: float) -> None:
    """Logarithmic beyond ``linear`` either side of zero, shaded between; few and plain ticks."""
    axes.set_xscale("symlog", linthresh=linear, linscale=0.6)
    axes.axvspan(-linear, linear, color=GREY, alpha=0.12, linewidth=0, zorder=0)
    low, high = axes.get_xlim()
    low, high = min(2 * low, -0.3 * linear), 2 * high
    first, last = np.ceil(np.log10(linear)), np.floor(np.log10(max(high, -low)))
    decades = 10.0 ** np.arange(first, last + 1)
    ticks = [t for t in (*-decades, 0.0, *decades) if low <= t <= high]
    axes.set_xticks(ticks, labels=[f"{t:g}" for t in ticks])
    axes.minorticks_off()
    axes.set_xlim(low, high)


def _draw_curve(
    axes: Axes, curve: Curve, label: str, color: str, linestyle: Any, linewidth: float = 1.8
) -> None:
    """A line with a band of one standard error."""
    steps = np.arange(len(curve.mean))
    mean = np.where(np.isfinite(curve.mean), curve.mean, np.nan)
    error = np.where(np.isfinite(curve.standard_error), curve.standard_error, np.nan)
    # A band that reaches zero would drag a logarithmic axis down without end.
    low = np.maximum(mean - error, 0.1 * mean)
    axes.fill_between(steps, low, mean + error, color=color, alpha=0.18, linewidth=0)
    axes.plot(steps, mean, label=label, color=color, linestyle=linestyle, linewidth=linewidth)


def _loss_axes(axes: Axes, relative: bool) -> None:
    axes.set_yscale("log")
    plain_log_ticks(axes.yaxis)
    axes.set_xlabel("iteration (inner steps)")
    axes.set_ylabel("loss / first loss (mean)" if relative else "loss (mean over problems)")
    axes.margins(x=0)
