"""Figure 8: how a component-wise learned optimizer is wired."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from optdyn.figures._style import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, new_figure, styled

Point = tuple[float, float]


@styled
def optimizer_schematic() -> Figure:
    """Fig. 8: gradient, encoding, recurrent cell, linear readout, update; one lane a component."""
    figure, (axes,) = new_figure((8.6, 4.0))
    axes.set_xlim(0, 17.2)
    axes.set_ylim(0, 7.8)
    axes.set_axis_off()
    for depth in (2, 1):
        offset = 0.28 * depth
        _box(axes, (3.05 + offset, 2.55 + offset), (9.9, 3.3), "", GREY, face="white", width=0.8)
    _box(axes, (3.05, 2.55), (9.9, 3.3), "", GREY, face="#F7F7F7", width=1.0)
    _box(axes, (0.2, 3.05), (2.1, 1.4), "problem\n∇f(xₖ)", BLACK)
    _box(axes, (3.6, 3.05), (2.1, 1.4), "encoding\nφ(gₖ)", GREEN)
    _box(axes, (6.9, 3.05), (2.3, 1.4), "GRU cell\nF(hₖ, φ(gₖ))", BLUE)
    _box(axes, (10.4, 3.05), (2.1, 1.4), "readout\nwᵀhₖ₊₁", ORANGE)
    _box(axes, (14.8, 3.25), (1.0, 1.0), "+", PURPLE)
    _arrow(axes, (2.3, 3.75), (3.6, 3.75), "gₖ", (2.72, 4.0))
    _arrow(axes, (5.7, 3.75), (6.9, 3.75))
    _arrow(axes, (9.2, 3.75), (10.4, 3.75), "hₖ₊₁", (9.8, 4.0))
    _arrow(axes, (12.5, 3.75), (14.8, 3.75), "Δxₖ", (14.15, 4.0))
    _arrow(axes, (8.75, 4.45), (7.35, 4.45), "state hₖ, kept between steps", (8.05, 5.35), bend=1.1)
    _arrow(axes, (15.8, 3.75), (17.1, 3.75), "xₖ₊₁", (16.45, 4.0))
    axes.plot([16.45, 16.45, 1.25], [3.75, 1.2, 1.2], color=BLACK, linewidth=1.4)
    _arrow(axes, (1.25, 1.2), (1.25, 3.05))
    _arrow(axes, (15.3, 1.2), (15.3, 3.25), "xₖ", (15.0, 2.0))
    axes.text(8.0, 1.42, "next step: the new parameters give the next gradient", ha="center")
    words = (
        "one lane for each scalar parameter of the problem:\n"
        "own state, same weights θ (cell, readout) in all lanes"
    )
    axes.text(8.3, 7.05, words, ha="center", va="center")
    return figure


def _box(
    axes: Axes,
    corner: Point,
    size: tuple[float, float],
    text: str,
    color: str,
    *,
    face: str = "white",
    width: float = 1.8,
) -> None:
    """A rounded box with its lower left ``corner``, its ``size`` and ``text`` in its middle."""
    style = "round,pad=0,rounding_size=0.18"
    look: Any = {"boxstyle": style, "edgecolor": color, "facecolor": face, "linewidth": width}
    axes.add_patch(FancyBboxPatch(corner, *size, **look))
    centre = (corner[0] + size[0] / 2, corner[1] + size[1] / 2)
    axes.text(*centre, text, ha="center", va="center")


def _arrow(
    axes: Axes, start: Point, end: Point, text: str = "", at: Point = (0.0, 0.0), bend: float = 0.0
) -> None:
    """An arrow from ``start`` to ``end``, with ``text`` written above the point ``at``."""
    look: Any = {"arrowstyle": "-|>", "mutation_scale": 13, "linewidth": 1.4, "color": BLACK}
    path = f"arc3,rad={bend}"
    axes.add_patch(FancyArrowPatch(start, end, **look, shrinkA=0, shrinkB=0, connectionstyle=path))
    axes.text(*at, text, ha="center", va="bottom")
