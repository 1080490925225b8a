"""The look shared by every figure: fonts, sizes, and colours that colour-blind readers can tell."""

from __future__ import annotations

from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

# Okabe and Ito's palette (2008).
BLACK = "#000000"
ORANGE = "#E69F00"
SKY_BLUE = "#56B4E9"
GREEN = "#009E73"
YELLOW = "#F0E442"
BLUE = "#0072B2"
VERMILLION = "#D55E00"
PURPLE = "#CC79A7"
GREY = "#767676"
LIGHT_GREY = "#C8C8C8"
GOLD = "#FFC20A"
DARK_GOLD = "#A87900"
SHADE = "#F7E3DA"
"""Of what is unstable."""

LEADING: Any = {"marker": "D", "color": VERMILLION, "edgecolor": BLACK, "linewidth": 0.8}
"""How the leading mode is marked."""

SINGLE = (5.4, 4.0)
WIDE = (7.6, 3.6)

STYLE: Any = {
    "axes.grid": False,
    "axes.labelsize": 10,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10.5,
    "figure.dpi": 150,
    "figure.facecolor": "white",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial", "sans-serif"],
    "font.size": 10,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.6,
    "legend.fontsize": 9,
    "legend.framealpha": 0.9,
    "legend.edgecolor": "#DDDDDD",
    "legend.fancybox": False,
    "lines.linewidth": 1.8,
    "savefig.dpi": 150,
    "svg.fonttype": "none",
    # Fixed, so that the same figure gives the same bytes.
    "svg.hashsalt": "optdyn",
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
}

styled = matplotlib.rc_context(STYLE)
"""Decorator: run a drawing function under `STYLE`, leaving matplotlib's settings as they were."""

_OPTIMIZER_STYLES: dict[str, dict[str, Any]] = {
    "learned": {"color": BLUE, "linestyle": "-", "marker": "o"},
    "momentum": {"color": VERMILLION, "linestyle": "--", "marker": "s"},
    "rmsprop": {"color": GREEN, "linestyle": "-.", "marker": "^"},
    "adam": {"color": PURPLE, "linestyle": (0, (5, 1, 1, 1, 1, 1)), "marker": "D"},
    "nesterov": {"color": ORANGE, "linestyle": (0, (3, 1)), "marker": "v"},
    "aggmo": {"color": SKY_BLUE, "linestyle": (0, (6, 2)), "marker": "P"},
    "gradient_descent": {"color": GREY, "linestyle": ":", "marker": "X"},
}
_FALLBACK_COLOURS = (BLACK, YELLOW, GREY)

_NAMES = {
    "adam": "Adam",
    "aggmo": "AggMo",
    "learned": "learned optimizer",
    "linear_1": "best linear, 1 mode",
    "linear_2": "best linear, 2 modes",
    "linear_4": "best linear, 4 modes",
    "lion": "Lion",
    "nesterov": "Nesterov",
    "rmsprop": "RMSProp",
    "rosenbrock": "Rosenbrock",
}


def optimizer_style(name: str, position: int = 0) -> dict[str, Any]:
    """Colour, line style and marker of an optimizer, the same in every figure.

    ``position`` picks the colour of one that has none of its own.
    """
    fallback = {
        "color": _FALLBACK_COLOURS[position % len(_FALLBACK_COLOURS)],
        "linestyle": (0, (1, 1)),
        "marker": "*",
    }
    return _OPTIMIZER_STYLES.get(name, fallback)


def readable(name: str) -> str:
    """A name from a registry as a reader would write it: ``rmsprop`` is RMSProp."""
    return _NAMES.get(name, name.replace("_", " "))


def finite(values: Any) -> np.ndarray:
    """``values`` with NaN for what is not finite, which is not drawn."""
    array = np.asarray(values)
    return np.where(np.isfinite(array), array, np.nan)


def new_figure(
    size: tuple[float, float] = SINGLE, rows: int = 1, columns: int = 1, **options: Any
) -> tuple[Figure, list[Axes]]:
    """A figure of ``size`` inches and its axes in reading order, apart from pyplot's state.

    ``options`` go to `Figure.subplots`.
    """
    figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(wspace=0.05, hspace=0.06))
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    return figure, list(axes.ravel())


def tiles(
    count: int,
    columns: int,
    panel: tuple[float, float],
    around: tuple[float, float] = (0.0, 0.0),
    **options: Any,
) -> tuple[Figure, list[Axes]]:
    """`new_figure` of ``count`` panels of the size ``panel``, ``columns`` or fewer in a row."""
    columns = min(columns, count)
    rows = -(-count // columns)
    size = (panel[0] * columns + around[0], panel[1] * rows + around[1])
    figure, axes = new_figure(size, rows, columns, **options)
    for spare in axes[count:]:
        spare.remove()
    return figure, axes[:count]


def unit_circle(axes: Axes, label: str | None = None) -> None:
    """The unit circle on axes that show eigenvalues β."""
    circle = np.exp(1j * np.linspace(0, 2 * np.pi, 721))
    axes.plot(circle.real, circle.imag, color=GREY, linewidth=1.1, label=label)
    axes.set(xlabel="real part of β", ylabel="imaginary part of β")


def cross(axes: Axes) -> None:
    """Faint lines through 0."""
    for line in (axes.axhline, axes.axvline):
        line(0, color="#E4E4E4", linewidth=0.8, zorder=0)


@styled
def entitled(figure: Figure, title: str) -> Figure:
    """``figure`` with ``title`` over all its panels: what a picture on its own is of."""
    size = STYLE["axes.titlesize"] + 0.5
    figure.suptitle(title, fontsize=size, fontweight="bold", parse_math=False, wrap=True)
    return figure


def plain_log_ticks(axis: Axis) -> None:
    """Tick a logarithmic axis with plain numbers where it spans less than three decades.

    To be called when everything is drawn: it looks at the range reached.
    """
    low, high = axis.get_view_interval()
    if low <= 0 or (decades := np.log10(high / low)) >= 3:
        return
    if decades < 0.8:
        axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    else:
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if decades < 1.6 else (1.0,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
