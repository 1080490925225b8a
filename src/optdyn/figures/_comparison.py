"""Figures 7c and 9, the loss curves and what is kept of an advantage: optimizers side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from optdyn.figures._style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    finite,
    new_figure,
    optimizer_style,
    plain_log_ticks,
    readable,
    styled,
    tiles,
)
from optdyn.inner_loop import MeanAndError

Curve = MeanAndError[np.ndarray]
"""Losses over a set of problems, from before the first step to after the last [T + 1]."""
Scores = Mapping[str, MeanAndError[float]]
"""One number with its standard error, over problems, by the name of the optimizer."""

LEARNED = "learned"
WIDE_RATIO = 8.0
DIVERGED = 10.0
LOWEST = -1.0
"""A fraction of an advantage below this is drawn here, with its value beside it."""
TOO_LONG = 1e4
"""From here on fractions are written with a power of ten."""


@styled
def loss_curves(curves: Mapping[str, Curve], relative: bool = False) -> Figure:
    """Mean loss ± standard error against iteration, one line an optimizer.

    ``relative``: each problem's losses are in units of its first.
    """
    figure, (axes,) = new_figure((6.4, 4.2))
    for position, (name, curve) in enumerate(curves.items()):
        look = optimizer_style(name, position)
        _draw_curve(axes, curve, readable(name), look["color"], look["linestyle"])
    _loss_axes(axes, relative)
    figure.legend(loc="outside lower center", ncols=min(4, len(curves)))
    return figure


@styled
def reduction_losses(full: Curve, reduced: Curve, tuned: Curve, relative: bool = False) -> Figure:
    """Fig. 7c: the full learned optimizer, the same cut down to one mode, tuned momentum.

    ``relative`` as for `loss_curves`. A mode that diverges on its own leaves the
    axes at ten times the highest loss of the other two, and is not drawn after that.
    """
    others = np.concatenate([full.mean, tuned.mean])
    ceiling = DIVERGED * float(np.nanmax(others))
    beyond = np.flatnonzero(~(reduced.mean <= ceiling))
    diverges = beyond.size > 0
    followed = slice(beyond[0] + 1 if diverges else None)
    reduced = MeanAndError(reduced.mean[followed], reduced.standard_error[followed])
    alone = "its leading mode alone" + (" (diverges)" if diverges else "")
    figure, (axes,) = new_figure((5.4, 4.6))
    _draw_curve(axes, full, "full learned optimizer", BLUE, "-", linewidth=2.6)
    _draw_curve(axes, reduced, alone, ORANGE, "--")
    _draw_curve(axes, tuned, "best tuned momentum", GREEN, ":")
    _loss_axes(axes, relative)
    if diverges:
        axes.set_ylim(0.5 * float(np.min(others[others > 0])), ceiling)
    figure.legend(loc="outside lower center", title="mean ± standard error", title_fontsize=9)
    return figure


@styled
def performance_summary(tasks: Mapping[str, Scores]) -> Figure:
    """Fig. 9: meta-objective on unseen problems, one panel a task, mean ± standard error."""

    def draw(axes: Axes, scores: Scores) -> None:
        _draw_scores(axes, scores, lambda s: f"{s.mean:#.3g} ± {s.standard_error:.2g}", errors=1.0)
        if LEARNED in scores:
            axes.axvline(scores[LEARNED].mean, color=BLUE, linestyle=":", linewidth=1.0, zorder=0)
        if _is_wide([s.mean for s in scores.values()]):
            axes.set_xscale("log")
            plain_log_ticks(axes.xaxis)
        else:
            axes.set_xlim(left=0)
            axes.locator_params(axis="x", nbins=4)
        axes.set_xlabel("meta-objective (± standard error)")

    return _panels(tasks, draw)


@styled
def paired_differences(tasks: Mapping[str, Scores]) -> Figure:
    """Fig. 9, paired: each baseline's meta-objective minus the learned optimizer's.

    Scores are means over the same problems; bars span ± 2 standard errors, so
    that one which stays right of zero tells a baseline that is beaten.
    """

    def number(score: MeanAndError[float]) -> str:
        error = score.standard_error
        return f"{score.mean:#.3g} ({f'{score.mean / error:.1f} s.e.' if error else 'exact'})"

    def draw(axes: Axes, scores: Scores) -> None:
        _draw_scores(axes, scores, number, errors=2.0)
        axes.axvline(0, color=GREY, linewidth=1.4)
        sizes = [abs(s.mean) for s in scores.values()]
        label = "baseline minus learned (± 2 s.e.)"
        if _is_wide(sizes):
            _symmetric_log(axes, min(sizes))
            label += ";\nshaded: linear, beyond it logarithmic"
        axes.set_xlabel(label)

    return _panels(tasks, draw)


@styled
def advantage_kept(
    sizes: Scores, without: Scores, learned_without: Scores, baseline: str, aim: float
) -> Figure:
    """Fractions of the advantage over ``baseline``, one bar each, with standard errors.

    ``sizes``: readable optimizers, smallest first; ``without``: the chosen one less a
    part; ``learned_without``: the learned one less a mechanism. ``aim``: a line.
    """
    groups = (
        ("readable optimizers, smallest first", sizes, BLUE),
        ("the chosen one without one part", without, ORANGE),
        ("the learned optimizer without a mechanism", learned_without, GREEN),
    )
    rows = [max(len(scores), 1) for _, scores, _ in groups]
    size = (7.4, 1.6 + 0.34 * sum(rows))
    figure, panels = new_figure(size, 3, 1, sharex=True, height_ratios=rows)
    for axes, (title, scores, color) in zip(panels, groups, strict=True):
        _bars(axes, scores, color)
        axes.axvline(0, color=BLACK, linewidth=0.9)
        axes.axvline(1, color=GREY, linestyle="--", linewidth=1.1)
        axes.axvline(aim, color=GREY, linestyle=":", linewidth=1.1)
        axes.set_title(title, loc="left")
    inside = [s for _, scores, _ in groups for s in scores.values() if s.mean >= LOWEST]
    reach = np.array([s.mean + s.standard_error for s in inside])
    top = float(np.max(reach[np.isfinite(reach)], initial=1.0))
    panels[-1].set_xlim(LOWEST - 0.05, 1.25 * top)
    panels[-1].set_xlabel(
        f"fraction of the advantage over {readable(baseline)} that is reached\n"
        f"(0: {readable(baseline)}; dashed: the learned optimizer; dotted: aim {aim:g};\n"
        f"pale bars go on beyond −{-LOWEST:g})"
    )
    return figure


def _panels(tasks: Mapping[str, Scores], draw: Callable[[Axes, Scores], None]) -> Figure:
    """One panel a task, two beside each other."""
    longest = max(len(scores) for scores in tasks.values())
    size = (4.6 if len(tasks) > 1 else 6.0, 1.1 + 0.28 * longest)
    figure, panels = tiles(len(tasks), 2, size)
    for axes, (task, scores) in zip(panels, tasks.items(), strict=True):
        draw(axes, scores)
        axes.set_title(readable(task))
    return figure


def _draw_scores(
    axes: Axes, scores: Scores, number: Callable[[MeanAndError[float]], str], errors: float
) -> None:
    """One row a score, the first on top: marker, error bar and, to the right, its number."""
    for row, (name, score) in enumerate(scores.items()):
        look = optimizer_style(name, row)
        known = np.isfinite(score.mean)
        if known:
            axes.errorbar(
                score.mean, row, xerr=errors * score.standard_error, color=look["color"],
                marker=look["marker"], markersize=5.5, capsize=4, linewidth=1.6,
            )  # fmt: skip
        axes.annotate(
            number(score) if known else "diverged", (1.02, row), va="center", fontsize=9,
            xycoords=axes.get_yaxis_transform(), annotation_clip=False,
        )  # fmt: skip
    axes.set_yticks(range(len(scores)), labels=[readable(name) for name in scores])
    axes.set_ylim(len(scores) - 0.5, -0.5)
    axes.margins(x=0.1)
    axes.grid(True, axis="x")
    axes.set_axisbelow(True)


def _is_wide(values: Sequence[float]) -> bool:
    """Whether positive numbers differ so much that a linear axis would hide the small ones."""
    finite = [value for value in values if np.isfinite(value)]
    return bool(finite) and max(finite) > WIDE_RATIO * min(finite) > 0


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


def _bars(axes: Axes, scores: Scores, color: str) -> None:
    note = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
    for place, score in enumerate(scores.values()):
        inside = np.isfinite(score.mean) and score.mean >= LOWEST
        length = score.mean if inside else LOWEST
        error = score.standard_error if inside and np.isfinite(score.standard_error) else None
        axes.barh(
            place, length, height=0.66, color=color, alpha=0.85 if inside else 0.35, xerr=error,
            error_kw={"elinewidth": 1.1, "capsize": 2.5},
        )  # fmt: skip
        edge = max(length + (error or 0.0), 0.0)
        axes.text(edge + 0.03, place, _worth(score.mean), va="center", fontsize=9, bbox=note)
    axes.set_yticks(range(len(scores)), labels=list(scores))
    axes.set_ylim(len(scores) - 0.4, -0.6)


def _worth(fraction: float) -> str:
    """A fraction as a few characters, however far from 1 it is."""
    if not np.isfinite(fraction):
        return "diverged"
    if abs(fraction) < TOO_LONG:
        return f"{fraction:.2f}".replace("-", "−")
    power = int(np.floor(np.log10(abs(fraction))))
    return f"{fraction / 10.0**power:.1f}·$10^{{{power}}}$".replace("-", "−")


def _draw_curve(
    axes: Axes, curve: Curve, label: str, color: str, linestyle: Any, linewidth: float = 1.8
) -> None:
    """A line with a band of one standard error."""
    steps = np.arange(len(curve.mean))
    mean, error = finite(curve.mean), finite(curve.standard_error)
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
