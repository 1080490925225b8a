"""Modes followed through meta-training: the paths of eigenvalues, as a figure and a film."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.animation import FuncAnimation, PillowWriter

from optdyn.dynamics import timescale
from optdyn.figures._modes import meta_step_axis
from optdyn.figures._style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SKY_BLUE,
    VERMILLION,
    new_figure,
    plain_log_ticks,
    styled,
)

if TYPE_CHECKING:
    from jaxtyping import Complex, Float, Int
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy import ndarray

COLOURS = (VERMILLION, BLUE, GREEN, ORANGE, PURPLE, SKY_BLUE, GREY, BLACK)
DASHED_FROM = 4
GAIN_DECADES = 5
FRAMES_A_SECOND = 4
FILM_DPI = 80
LARGEST_MARKER = 260.0
CHECKPOINTS_DRAWN, TRACKS_DRAWN = 40, 6
"""More lines and corners of them make a tangle of modes that training throws about."""


@styled
def mode_tracks(
    meta_step: Int[ndarray, " S"],
    beta: Complex[ndarray, "S K"],
    gain: Float[ndarray, "S K"],
    chosen: int | None = None,
) -> Figure:
    """Each followed mode's eigenvalue path, timescale and gain against meta-step.

    Columns are modes, those that matter most first; the first `TRACKS_DRAWN` are drawn, at
    `CHECKPOINTS_DRAWN` checkpoints evenly spread. ``chosen``: a meta-step to mark.
    """
    spread = np.linspace(0, len(meta_step) - 1, min(CHECKPOINTS_DRAWN, len(meta_step)))
    thin = np.unique(spread.round().astype(int))
    meta_step, beta, gain = meta_step[thin], beta[thin, :TRACKS_DRAWN], gain[thin, :TRACKS_DRAWN]
    figure, (plane, slow, strong) = new_figure((10.4, 3.9), 1, 3)
    _unit_circle(plane, beta)
    visible = np.where(gain > 0, gain, np.nan)
    for j, color in zip(range(beta.shape[1]), COLOURS, strict=False):
        look: dict[str, Any] = {
            "color": color,
            "linestyle": "-" if j < DASHED_FROM else (0, (4, 1.2)),
        }
        plane.plot(beta[:, j].real, beta[:, j].imag, **look, linewidth=1.0, alpha=0.8)
        plane.scatter(
            beta[:1, j].real, beta[:1, j].imag, s=22, facecolor="white", edgecolor=color, zorder=3
        )
        plane.scatter(beta[-1:, j].real, beta[-1:, j].imag, s=30, color=color, zorder=4)
        slow.plot(meta_step, timescale(beta[:, j]), **look, linewidth=1.3)
        strong.plot(meta_step, visible[:, j], **look, linewidth=1.3, label=f"mode {j + 1}")
    plane.scatter([], [], s=22, facecolor="white", edgecolor=BLACK, label="first checkpoint")
    plane.scatter([], [], s=30, color=BLACK, label="last checkpoint")
    plane.set_title("paths of eigenvalues")
    top = float(np.nanmax(gain[np.isfinite(gain)], initial=1e-30))
    strong.set_ylim(top * 10.0**-GAIN_DECADES, 3.0 * top)
    for axes, label, title in (
        (slow, "timescale −1/ln|β| (steps)", "timescales"),
        (strong, "|α/(1−β)|", "steady-state gains"),
    ):
        axes.set_yscale("log")
        meta_step_axis(axes, meta_step)
        axes.set(ylabel=label, title=title)
        axes.grid(True, axis="y")
        if chosen is not None:
            axes.axvline(chosen, color=GREY, linestyle=":", linewidth=1.4)
    plain_log_ticks(slow.yaxis)
    figure.legend(loc="outside lower center", ncols=beta.shape[1] + 2, fontsize=8)
    return figure


@styled
def mode_film(
    meta_step: Int[ndarray, " S"],
    beta: Complex[ndarray, "S K"],
    gain: Float[ndarray, "S K"],
) -> bytes:
    """An animated GIF of the modes in the complex plane, one frame a checkpoint.

    A mode's area grows with its gain, its colour is that of `mode_tracks`.
    """
    figure, (plane,) = new_figure((4.6, 4.8))
    _unit_circle(plane, beta)
    colors = [COLOURS[j % len(COLOURS)] for j in range(beta.shape[1])]
    points = plane.scatter(beta[0].real, beta[0].imag, c=colors, edgecolor=BLACK, zorder=3)
    top = float(np.nanmax(gain[np.isfinite(gain)], initial=1e-30))
    area = 12.0 + LARGEST_MARKER * np.sqrt(np.nan_to_num(gain, posinf=top) / top)
    trails = [plane.plot([], [], color=color, linewidth=0.9, alpha=0.6)[0] for color in colors]

    def draw(frame: int) -> None:
        points.set_offsets(np.column_stack([beta[frame].real, beta[frame].imag]))
        points.set_sizes(area[frame])
        for j, trail in enumerate(trails):
            trail.set_data(beta[: frame + 1, j].real, beta[: frame + 1, j].imag)
        plane.set_title(f"eigenvalues at meta-step {int(meta_step[frame]):,}")

    film = FuncAnimation(figure, draw, frames=len(meta_step), init_func=lambda: None)
    # The writer takes a path alone.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "film.gif"
        film.save(path, writer=PillowWriter(fps=FRAMES_A_SECOND), dpi=FILM_DPI)
        return path.read_bytes()


def _unit_circle(axes: Axes, beta: Complex[ndarray, "S K"]) -> None:
    """Axes that show every eigenvalue, with the unit circle."""
    circle = np.exp(1j * np.linspace(0, 2 * np.pi, 721))
    axes.plot(circle.real, circle.imag, color=GREY, linewidth=1.0)
    real, imaginary = beta.real[np.isfinite(beta)], np.abs(beta.imag[np.isfinite(beta)])
    low = min(float(np.min(real, initial=0.5)) - 0.08, 0.45)
    high = max(1.1, float(np.max(real, initial=1.0)) + 0.05)
    half = max(float(np.max(imaginary, initial=0.0)) * 1.2, (high - low) / 2)
    axes.set(xlim=(low, high), ylim=(-half, half))
    axes.set(xlabel="real part of β", ylabel="imaginary part of β")
