"""Figures: each is drawn from small data, labelled, and saved with its numbers."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from optdyn import figures
from optdyn.dynamics import Fit, Identification, Responses, StabilityMap
from optdyn.errors import UserError
from optdyn.figures import (
    MomentumPoint,
)
from optdyn.figures._modes import meta_step_axis
from optdyn.figures._style import STYLE
from optdyn.inner_loop import MeanAndError
from optdyn.mechanisms import StageRow, TunedMomentum
from optdyn.optimizers._search_space import Axis
from optdyn.search import Grid, SearchSettings, SearchTable

BETA = np.array([0.9, 0.5 + 0.3j, 0.5 - 0.3j, 0.3, -0.2, 0.0, 1.1], complex)
ALPHA = np.array([0.3, 1e-3j, -1e-3j, -2e-4, 1e-5, 1e-3, 1e-12], complex)
TUNED, THEORY = MomentumPoint(0.31, 0.91), MomentumPoint(0.33, 0.92)
STEPS = np.array([0, 1, 10, 100])


def curve(rate: float) -> MeanAndError[np.ndarray]:
    mean = np.exp(-rate * np.arange(21.0)) + 1e-3
    return MeanAndError(mean, 0.1 * mean)


def scores(*pairs: tuple[str, float]) -> dict[str, MeanAndError[float]]:
    return {name: MeanAndError(mean, 0.1 * abs(mean)) for name, mean in pairs}


def searched(optimizer: str, decay: str) -> SearchTable:
    axes = Axis("alpha", "log", 1e-3, 1.0, 9), Axis(decay, "one_minus_log", 0.1, 0.99, 9)
    settings = SearchSettings(optimizer, "rosenbrock", {}, 0, Grid(axes))
    rate = axes[0].values()
    objective = np.where(rate < 0.5, 0.05 + (np.log10(rate) + 1) ** 2, np.inf)
    indices = np.tile(np.arange(9)[:, None], 2)
    return SearchTable(settings, settings.grid, indices, objective, objective)


def momentum_stage(**changed: Any) -> Figure:
    columns = {
        "meta_step": STEPS.tolist(),
        "meta_objective": [0.5, 0.3, 0.05, 0.03],
        "alpha": [-0.1, 0.2, 0.3, 0.35],
        "beta": [np.nan, 0.5, 0.9, 0.93],
        "oscillating": [False] * 4,
        "gain_gap": [1.0, 2.0, 5.0, 4.0],
        "rate_ratio": [np.nan] * 4,
        "momentum_ratio": changed.pop("momentum_ratio", [np.nan, 2.0, 1.05, 1.2]),
        "deviation": [0.5, 0.2, 0.04, 0.3],
    }
    arguments = {
        "checkpoints": [StageRow(*row) for row in zip(*columns.values(), strict=True)],
        "tuned": TunedMomentum(0.31, 0.91, 0.045),
        "theory": THEORY,
        "chosen": 10,
        "thresholds": {"gain_gap": 3.0, "momentum_ratio": 1.1, "deviation": 0.05},
    }
    return figures.momentum_stage(**(arguments | changed))


def surface() -> Figure:
    x, y = np.linspace(-2, 2, 9), np.linspace(-1, 3, 9)
    loss = (1 - x[None]) ** 2 + 100 * (y[:, None] - x[None] ** 2) ** 2
    return figures.rosenbrock_surface(x, y, loss, (1.0, 1.0))


DRAWN: dict[str, tuple[Callable[[], Figure], list[str]]] = {
    "condition_numbers": (
        lambda: figures.condition_numbers(np.geomspace(1, 1000, 101)),
        ["median: 31.6"],
    ),
    "rosenbrock_surface": (surface, ["minimum at (1, 1)"]),
    "two_moons_data": (
        lambda: figures.two_moons_data(np.eye(6)[:, :2], np.array([0, 0, 1, 1, 1, 0])),
        ["class 0 (3 points)", "class 1 (3 points)"],
    ),
    "eigenvalue_plane": (
        lambda: figures.eigenvalue_plane(BETA),
        ["leading mode", "other modes", "unit circle"],
    ),
    "momentum_hyperparameters": (
        lambda: figures.momentum_hyperparameters(BETA, ALPHA, TUNED, THEORY),
        [
            "best tuned momentum",
            "leading mode (ringed)",
            "mode, conjugate pair",
            "mode, real, α < 0",
            "mode, real, α > 0",
            "optimal momentum (theory)",
        ],
    ),
    "reduction_losses": (
        lambda: figures.reduction_losses(curve(0.5), curve(0.4), curve(0.3)),
        ["best tuned momentum", "full learned optimizer", "its leading mode alone"],
    ),
    "reduction_losses_of_a_mode_that_diverges": (
        lambda: figures.reduction_losses(curve(0.5), curve(-1.0), curve(0.3), relative=True),
        ["best tuned momentum", "full learned optimizer", "its leading mode alone (diverges)"],
    ),
    "loss_curves": (
        lambda: figures.loss_curves({"learned": curve(0.5), "a_new_one": curve(0.2)}),
        ["a new one", "learned optimizer"],
    ),
    "performance_summary": (
        lambda: figures.performance_summary(
            {
                "linear_regression": scores(("learned", 0.02), ("adam", 0.04)),
                "rosenbrock": scores(("learned", 0.03), ("momentum", np.inf), ("adam", 9.0)),
                "two_moons": scores(("learned", 0.03)),
            }
        ),
        [],
    ),
    "paired_differences": (
        lambda: figures.paired_differences(
            {"rosenbrock": scores(("adam", 0.001), ("momentum", 2.0), ("rmsprop", -0.01))}
        ),
        [],
    ),
    "hyperparameter_searches": (
        lambda: figures.hyperparameter_searches(
            [
                searched("momentum", "beta"),
                searched("rmsprop", "gamma"),
                searched("adam", "beta1"),
            ]
        ),
        ["diverged", "selected as best"],
    ),
    "training_curve": (
        lambda: figures.training_curve(
            np.arange(100), np.geomspace(1, 0.1, 100), np.eye(100, dtype=int)[3]
        ),
        ["each meta-step", "running mean over 2 meta-steps"],
    ),
    "momentum_stage": (
        momentum_stage,
        [
            "above 1,000, or diverged",
            "best tuned momentum",
            "chosen checkpoint: meta-step 10",
            "learned optimizer at each checkpoint",
            "optimal momentum (theory)",
            "threshold of the claim",
        ],
    ),
    "momentum_hyperparameters_without_theory": (
        lambda: figures.momentum_hyperparameters(BETA[:1], ALPHA[:1], TUNED, None),
        ["best tuned momentum", "leading mode (ringed)"],
    ),
    "momentum_stage_without_theory": (
        lambda: momentum_stage(theory=None, thresholds={}),
        [
            "above 1,000, or diverged",
            "best tuned momentum",
            "chosen checkpoint: meta-step 10",
            "learned optimizer at each checkpoint",
        ],
    ),
    "mode_stages": (
        lambda: figures.mode_stages(
            (steps := np.array([0, 1, 2, 4, 8])),
            np.tile(BETA, (5, 1)),
            np.outer(steps, ALPHA),
            TUNED,
            None,
            4,
        ),
        ["best tuned momentum", "leading mode", "other modes"],
    ),
    "modes_over_training": (
        lambda: figures.modes_over_training(
            STEPS, np.tile(BETA, (4, 1)), np.tile(np.abs(ALPHA), (4, 1)), chosen=10
        ),
        ["meta-step 10"],
    ),
    "optimizer_modes": (
        lambda: figures.optimizer_modes(BETA, ALPHA, np.abs(ALPHA / (1 - BETA)), 0.2),
        [
            "feed-through (no memory)",
            "leading mode",
            "other modes, α < 0",
            "other modes, α > 0",
        ],
    ),
    "optimizer_modes_of_sign": (
        lambda: figures.optimizer_modes(np.array([0.9]), np.zeros(1), np.zeros(1), 0.0),
        ["not driven by the gradient"],
    ),
    "optimizer_modes_without_memory": (
        lambda: figures.optimizer_modes(np.zeros(0), np.zeros(0), np.zeros(0), 0.1),
        ["feed-through (no memory)"],
    ),
    "optimizer_impulse": (
        lambda: figures.optimizer_impulse(
            -np.exp(-np.arange(30.0)), -np.exp(-np.arange(30.0))[None], ["mode, |β| = 0.37"], 0.1
        ),
        ["all of it", "feed-through", "mode, |β| = 0.37"],
    ),
    "optimizer_stability": (
        lambda: figures.optimizer_stability(stability(np.zeros(0))),
        [
            "best gradient descent there: 0.9048",
            "best momentum there (optimum): 0.6345",
            "its fastest: 0 at λ = 10",
            "its slowest on the range: 0.99",
            "this optimizer",
            "unstable beyond 20",
        ],
    ),
    "optimizer_stability_on_a_task": (
        lambda: figures.optimizer_stability(stability(np.array([0.1, 1.0, 2.0]))),
        [
            "best gradient descent there: 0.9048",
            "best momentum there (optimum): 0.6345",
            "its fastest: 0 at λ = 10",
            "its slowest on the range: 0.99",
            "this optimizer",
            "unstable beyond 20",
        ],
    ),
    "optimizer_identification": (
        lambda: figures.optimizer_identification(identification()),
        ["nearest: momentum", "the optimizer"],
    ),
}


def stability(spectrum: np.ndarray) -> StabilityMap:
    curvature = np.geomspace(1e-3, 60.0, 60)
    return StabilityMap(
        curvature=curvature,
        radius=np.abs(1.0 - 0.1 * curvature),
        edge=20.0,
        fastest_curvature=10.0,
        fastest_radius=0.0,
        low=0.1,
        high=2.0,
        rate=0.99,
        momentum_rate=0.6345,
        descent_rate=0.9048,
        range_given=spectrum.size > 0,
        spectrum=spectrum,
    )


def identification() -> Identification:
    gradients = np.concatenate([np.geomspace(1e-3, 1e3, 7)[:, None] * np.eye(1, 20)] * 2)
    seen = Responses(
        gradients=gradients,
        updates=-0.1 * np.cumsum(gradients, axis=1),
        kinds=("impulse",) * 7 + ("constant",) * 7,
        amplitudes=np.tile(np.geomspace(1e-3, 1e3, 7), 2),
    )
    fits = tuple(
        Fit(name, {"alpha": 0.1}, residual, (1 - residual) * seen.updates)
        for name, residual in (("momentum", 0.0), ("lion", 0.9))
    )
    return Identification(fits, fits[0], seen)


def legend_entries(figure: Figure) -> list[str]:
    legends = [*figure.legends, *(a.get_legend() for a in figure.axes if a.get_legend())]
    return sorted(text.get_text() for legend in legends for text in legend.get_texts())


def names_rows(axes: Axes) -> bool:
    """Whether the vertical axis has names for ticks, which need no label."""
    ticks = [tick.get_text() for tick in axes.get_yticklabels()]
    return bool(ticks) and all(tick.replace(" ", "").isalpha() for tick in ticks)


@pytest.mark.parametrize("name", DRAWN)
def test_figures_are_labelled_and_legible(name: str) -> None:
    draw, expected = DRAWN[name]
    before = dict(matplotlib.rcParams)
    figure = draw()
    assert dict(matplotlib.rcParams) == before
    with matplotlib.rc_context(STYLE):
        figure.draw_without_rendering()
    for axes in figure.axes:
        across = axes.get_shared_y_axes().get_siblings(axes)
        assert any(a.get_ylabel() or names_rows(a) for a in across)
        beside = axes.get_shared_x_axes().get_siblings(axes)
        assert axes.get_label() == "<colorbar>" or any(a.get_xlabel() for a in beside)
    assert legend_entries(figure) == sorted(expected)
    texts = [t for t in figure.findobj(matplotlib.text.Text) if t.get_text()]
    assert min(t.get_fontsize() for t in texts if "mathdefault" not in t.get_text()) >= 9


def test_the_schematic_names_its_parts_and_stays_in_its_frame() -> None:
    figure = figures.optimizer_schematic()
    with matplotlib.rc_context(STYLE):
        figure.draw_without_rendering()
    (axes,) = figure.axes
    words = " ".join(text.get_text() for text in axes.texts)
    for part in ("∇f", "encoding", "GRU", "readout", "Δx", "state"):
        assert part in words
    frame = axes.get_window_extent()
    for text in axes.texts:
        if text.get_text():
            box = text.get_window_extent()
            assert frame.x0 <= box.x0
            assert box.x1 <= frame.x1


def test_points_lie_where_the_numbers_say() -> None:
    figure = figures.momentum_hyperparameters(BETA, ALPHA, TUNED, THEORY)
    (axes,) = figure.axes
    at = {c.get_label(): np.asarray(c.get_offsets()) for c in axes.collections}
    np.testing.assert_allclose(at["best tuned momentum"], [[0.31, -1 / np.log(0.91)]])
    np.testing.assert_allclose(at["optimal momentum (theory)"], [[0.33, -1 / np.log(0.92)]])
    np.testing.assert_allclose(at["leading mode (ringed)"], [[0.3, -1 / np.log(0.9)]])
    assert len(at["mode, conjugate pair"]) == 2
    assert "2 of 7 modes lie beyond" in axes.get_title()


def drawn_lines(axes: Axes) -> list[np.ndarray]:
    return [np.asarray(line.get_xydata()) for line in axes.lines]


def test_what_diverged_is_a_triangle_at_the_top_and_not_left_out() -> None:
    panel = momentum_stage(momentum_ratio=[np.nan, 2.0, 1.05, 1e30]).axes[4]
    triangles = next(line for line in panel.lines if line.get_marker() == "^")
    assert list(triangles.get_xdata()) == [0, 100]
    np.testing.assert_array_equal(drawn_lines(panel)[0][:, 1], [np.nan, 2.0, 1.05, np.nan])
    assert panel.get_ylim()[1] < 10.0


def test_a_mode_alone_is_drawn_until_it_leaves_the_axes() -> None:
    learned, tuned = curve(0.5), curve(0.3)
    rising = dataclasses.replace(learned, mean=np.array([1.0, 5.0, 50.0, 2.0, *[1.0] * 17]))
    (axes,) = figures.reduction_losses(learned, rising, tuned).axes
    (alone,) = (line for line in axes.lines if "alone" in str(line.get_label()))
    assert list(alone.get_ydata()) == [1.0, 5.0, 50.0]


@pytest.mark.parametrize(
    ("meta_steps", "ticks"),
    [((0, 1, 2, 50, 3000), [0, 1, 10, 100, 1000]), ((60, 80), [60, 80]), ((5,), [5])],
)
def test_the_axis_of_meta_steps_holds_them_with_ticks(
    meta_steps: tuple[int, ...], ticks: list[int]
) -> None:
    (axes,) = Figure().subplots(1, 1, squeeze=False)[0]
    meta_step_axis(axes, np.array(meta_steps))
    low, high = axes.get_xlim()
    assert low < min(meta_steps)
    assert high > max(meta_steps)
    assert list(axes.get_xticks()) == ticks
    if meta_steps == (60, 80):
        assert low > 40


def test_what_an_advantage_is_worth_stays_short() -> None:
    sizes = scores(("a", 0.5), ("b", -2.5), ("c", -9.29496e33), ("d", np.nan))
    figure = figures.advantage_kept(sizes, scores(("a", 0.5)), {}, "adam", 0.9)
    words = [text.get_text() for text in figure.axes[0].texts]
    assert words == ["0.50", "−2.50", "−9.3·$10^{33}$", "diverged"]


def test_a_title_says_what_a_picture_is_of_and_keeps_the_rest() -> None:
    name = "words of a long name, " * 8
    figure = figures.entitled(surface(), name)
    assert figure.get_suptitle() == name
    assert legend_entries(figure) == ["minimum at (1, 1)"]
    with matplotlib.rc_context(STYLE):
        figure.draw_without_rendering()
    (title,) = (text for text in figure.texts if text.get_text() == name)
    assert title.get_window_extent().width <= figure.bbox.width


def test_the_zoom_shows_the_leading_mode_alone_among_highlights() -> None:
    _, near = figures.eigenvalue_plane(BETA).axes
    highlighted = next(c for c in near.collections if c.get_label() == "leading mode")
    ((x, y),) = np.asarray(highlighted.get_offsets())
    assert (x, y) == (0.9, 0.0)
    assert near.get_xlim()[0] < x < near.get_xlim()[1]
    both = figures.eigenvalue_plane(BETA[1:]).axes[0].collections[1]
    assert len(np.asarray(both.get_offsets())) == 2


def test_searches_share_one_scale_from_the_best_of_all() -> None:
    better = searched("adam", "beta1")
    better.scores[4] = 0.01
    figure = figures.hyperparameter_searches([searched("momentum", "beta"), better])
    assert [axes.get_ylabel() for axes in figure.axes[:2]] == ["1 − β", "1 − β₁"]
    norms = [axes.collections[1].norm for axes in figure.axes[:2]]
    assert norms[0] is norms[1]
    assert norms[0].vmin == 0.01
    assert norms[0].vmax == pytest.approx(1.0)


def test_saving_writes_three_files_with_the_numbers(tmp_path: Path) -> None:
    data = {
        "curve": curve(0.5),
        "beta": BETA,
        "steps": STEPS,
        "best": 0.123456789,
        "diverged": [1.0, np.inf],
    }
    draw, _ = DRAWN["loss_curves"]
    figures.save_figure(draw(), data, tmp_path / "figures", "loss_curves")
    kinds = {path.suffix: path.read_bytes() for path in (tmp_path / "figures").iterdir()}
    assert set(kinds) == {".svg", ".png", ".json"}
    assert kinds[".png"].startswith(b"\x89PNG")
    assert b"<text" in kinds[".svg"]
    assert b"iteration (inner steps)" in kinds[".svg"]
    saved = json.loads(kinds[".json"])
    np.testing.assert_allclose(saved["curve"]["mean"], data["curve"].mean, rtol=1e-4)
    np.testing.assert_allclose(saved["beta"]["real"], BETA.real, rtol=1e-4)
    np.testing.assert_allclose(saved["beta"]["imaginary"], BETA.imag, rtol=1e-4)
    assert saved["steps"] == STEPS.tolist()
    assert saved["best"] == 0.12346
    assert saved["diverged"] == [1.0, None]
    figures.save_figure(draw(), data, tmp_path / "again", "loss_curves")
    assert {p.suffix: p.read_bytes() for p in (tmp_path / "again").iterdir()} == kinds


def test_an_unsafe_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="name"):
        figures.save_figure(Figure(), {}, tmp_path, "../elsewhere")
    assert list(tmp_path.iterdir()) == []


def test_the_lens_shows_edge_margin_groups_and_multipliers() -> None:
    history = [
        {
            "step": k,
            "sharpness": 0.5 * k + 0.1,
            "sharpness_edge": 2.0,
            "margin": 2.0 / (0.5 * k + 0.1),
            "rate/w": 0.1,
            "rate/v": 0.1,
            "rate/b": 0.3,
            "update_ratio/w": 0.01 * k,
            "multiplier/0/real": 1.0 - 0.5 * k,
            "multiplier/0/imag": 0.1,
        }
        for k in range(1, 6)
    ]
    figure = figures.lens(history)
    assert [text.get_text() for text in figure.axes[2].get_legend().get_texts()] == ["w, v", "b"]
    assert "multipliers" in figure.axes[3].get_title(loc="left")
    plain = [{k: v for k, v in row.items() if not k.startswith("multiplier")} for row in history]
    assert "update" in figures.lens(plain).axes[3].get_title(loc="left")
    figures.lens([{"step": 0}])
    with pytest.raises(UserError, match="with a step each"):
        figures.lens([{"loss": 1.0}])
