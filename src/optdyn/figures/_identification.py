"""Which optimizer is this: an optimizer's behaviour beside the nearest hand-designed one's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from optdyn.figures._style import (
    BLACK,
    GREY,
    LIGHT_GREY,
    VERMILLION,
    new_figure,
    readable,
    styled,
)

if TYPE_CHECKING:
    from jaxtyping import Float
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy import ndarray

    from optdyn.dynamics import Identification

SAME = 1e-6


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

    first = [np.abs(rows[:, 0]) for rows in pairs["constant"]]
    _both(saturation, levels, first, "o")
    saturation.set(
        title="saturation (first step)", xscale="log", yscale="log", xlabel="gradient |g|"
    )
    saturation.set_ylabel("first update |Δx|")

    settled = [np.abs(rows[:, -1]) / levels for rows in pairs["constant"]]
    _both(adaptation, levels, settled, "o")
    adaptation.set(title=f"adaptation (step {len(steps)} of constant g)")
    adaptation.set(xscale="log", yscale="log", xlabel="gradient |g|")
    adaptation.set_ylabel("effective learning rate |Δx/g|")

    for axes in (saturation, adaptation):
        _at_least_two_decades(axes)
    _residuals(residuals, found)
    handles, _ = impulse.get_legend_handles_labels()
    labels = ["the optimizer", f"nearest: {readable(nearest.name)}"]
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    return figure


def _both(
    axes: Axes,
    x: Float[ndarray, " n"],
    curves: list[Float[ndarray, " n"]],
    marker: str,
) -> None:
    target, fit = curves
    axes.plot(x, target, color=BLACK, linewidth=2.4, marker=marker, markersize=6, label="target")
    axes.plot(
        x, fit, color=VERMILLION, linewidth=1.5, linestyle="--", marker=marker, markersize=3,
        label="fit",
    )  # fmt: skip


def _at_least_two_decades(axes: Axes) -> None:
    """A curve that is flat but for rounding looks flat."""
    low, high = axes.get_ylim()
    if high / low < 100.0:
        middle = np.sqrt(low * high)
        axes.set_ylim(middle / 10.0, middle * 10.0)


def _residuals(axes: Axes, found: Identification) -> None:
    fits = found.fits[::-1]
    colours = [VERMILLION if fit is found.nearest else LIGHT_GREY for fit in fits]
    axes.barh(range(len(fits)), [fit.residual for fit in fits], color=colours)
    for row, fit in enumerate(fits):
        text = "the same" if fit.residual <= SAME else f"{fit.residual:.2g}"
        colour = VERMILLION if fit is found.nearest else GREY
        axes.text(fit.residual + 0.02, row, text, va="center", fontsize=9, color=colour)
    axes.set_yticks(range(len(fits)), [readable(fit.name) for fit in fits])
    axes.set(xlim=(0.0, 1.15), title="distance to each candidate")
    axes.set_xlabel("relative residual (0: the same)")
