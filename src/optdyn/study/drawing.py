"""Every figure of a study, drawn from its results and saved beside its numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from optdyn import figures
from optdyn.analysis import mean_curve
from optdyn.experiments.claims import THRESHOLDS
from optdyn.figures import Curve, MomentumPoint, MomentumStage, Score, SearchPanel, save_figure
from optdyn.random_streams import keys_at, stream
from optdyn.study.results import TaskResults, column, complex_column
from optdyn.tasks import LinearRegression, sample_batch
from optdyn.tuning import SearchTable, best

FIGURE_STREAM = "figure problems"
SEARCH_FIGURES = {"linear_regression": "fig10", "rosenbrock": "fig11", "two_moons": "fig12"}
SYMBOLS = {"beta": "β", "gamma": "γ", "beta1": "β₁", "beta2": "β₂"}


def draw_study(results: Sequence[TaskResults], folder: Path, normalization: str) -> None:
    """Draw the figures that span tasks, then each task's own, into ``folder``."""
    save_figure(figures.optimizer_schematic(), {}, folder, "fig08")
    scores = {r.task: _scores(r) for r in results}
    save_figure(figures.performance_summary(scores), scores, folder, "fig09")
    differences = {r.task: _differences(r) for r in results}
    save_figure(figures.paired_differences(differences), differences, folder, "fig09_paired")
    for result in results:
        if result.task == "linear_regression":
            _draw_condition_numbers(folder)
        _draw_searches(result, folder)
        _draw_training(result, folder)
        _draw_loss_curves(result, folder, normalization)
        _draw_modes(result, folder)


def _draw_condition_numbers(folder: Path) -> None:
    problems = sample_batch(LinearRegression(), keys_at(stream(0, FIGURE_STREAM), jnp.arange(2000)))
    values = np.linalg.cond(np.asarray(problems.data[0], float)) ** 2
    save_figure(figures.condition_numbers(values), {"condition_number": values}, folder, "fig02a")


def _draw_searches(result: TaskResults, folder: Path) -> None:
    panels = [panel for table in result.tables.values() for panel in _panels(table)]
    name = SEARCH_FIGURES.get(result.task, f"hyperparameter_search_{result.task}")
    save_figure(figures.hyperparameter_searches(panels), {"panels": panels}, folder, name)


def _panels(table: SearchTable) -> list[SearchPanel]:
    values = table.hyperparameters()
    return [
        SearchPanel(
            optimizer=table.settings.baseline,
            symbol=SYMBOLS[name],
            learning_rate=values["alpha"],
            decay=decay,
            meta_objective=table.scores,
            best=best(table).row,
        )
        for name, decay in values.items()
        if name != "alpha"
    ]


def _draw_training(result: TaskResults, folder: Path) -> None:
    names = ("meta_step", "meta_objective", "exploded")
    data = {name: column(result.training, name) for name in names}
    save_figure(
        figures.training_curve(*data.values()), data, folder, f"training_curve_{result.task}"
    )


def _draw_loss_curves(result: TaskResults, folder: Path, normalization: str) -> None:
    curves = [
        Curve(name, *mean_curve(np.asarray(e.losses, float), normalization))
        for name, e in result.evaluations.items()
    ]
    save_figure(
        figures.loss_curves(curves), {"curves": curves}, folder, f"loss_curves_{result.task}"
    )


def _draw_modes(result: TaskResults, folder: Path) -> None:
    analysis, rows = result.analysis, result.analysis["checkpoints"]
    tuned = MomentumPoint(analysis["tuned"]["alpha"], analysis["tuned"]["beta"])
    theory = analysis["theory"] and MomentumPoint(**analysis["theory"])
    paper = result.task == "linear_regression"
    for step, variant in ((analysis["momentum_stage"], "stage"), (analysis["final"], "final")):
        row = next(r for r in rows if r["meta_step"] == step)
        suffix = "" if paper and variant == "stage" else f"_{result.task}_{variant}"
        _draw_checkpoint(row, tuned, theory, folder, suffix)
    curves = {
        name: Curve(label, *(np.asarray(part) for part in analysis["curves"][name].values()))
        for name, label in (("full", "learned"), ("one_mode", "one mode"), ("tuned", "momentum"))
    }
    save_figure(
        figures.reduction_losses(*curves.values()),
        curves,
        folder,
        "fig07c" if paper else f"fig07c_{result.task}",
    )
    _draw_emergence(result, tuned, theory, folder)


def _draw_checkpoint(
    row: dict[str, Any],
    tuned: MomentumPoint,
    theory: MomentumPoint | None,
    folder: Path,
    suffix: str,
) -> None:
    beta = complex_column(row["modes"]["beta"])
    alpha = complex_column(row["modes"]["alpha"])
    data = {"meta_step": row["meta_step"], "beta": beta}
    save_figure(figures.eigenvalue_plane(beta), data, folder, f"fig07a{suffix}")
    save_figure(
        figures.momentum_hyperparameters(beta, alpha, tuned, theory),
        {**data, "alpha": alpha, "tuned": tuned, "theory": theory},
        folder,
        f"fig07b{suffix}",
    )


def _draw_emergence(
    result: TaskResults, tuned: MomentumPoint, theory: MomentumPoint | None, folder: Path
) -> None:
    analysis, rows = result.analysis, result.analysis["checkpoints"]
    stage = MomentumStage(
        **{
            name: column(rows, name)
            for name in (
                "meta_step",
                "meta_objective",
                "alpha",
                "beta",
                "gain_gap",
                "momentum_ratio",
                "deviation",
            )
        },
        tuned=tuned,
        theory=theory,
        tuned_meta_objective=analysis["tuned"]["meta_objective"],
        chosen=analysis["momentum_stage"],
        thresholds=THRESHOLDS,
    )
    save_figure(
        figures.momentum_stage(stage), {"stage": stage}, folder, f"momentum_stage_{result.task}"
    )
    data = {
        "meta_step": stage.meta_step,
        "beta": np.stack([complex_column(row["modes"]["beta"]) for row in rows]),
        "gain": np.stack([_finite(row["modes"]["gain"]) for row in rows]),
    }
    save_figure(
        figures.modes_over_training(**data, chosen=stage.chosen),
        data,
        folder,
        f"modes_over_training_{result.task}",
    )


def _finite(values: list[float | None]) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values])


def _scores(result: TaskResults) -> list[Score]:
    return [
        Score(name, evaluation.mean, evaluation.standard_error)
        for name, evaluation in result.evaluations.items()
    ]


def _differences(result: TaskResults) -> list[Score]:
    """Baseline minus learned: right of zero the learned optimizer wins."""
    missing = float("inf")
    return [
        Score(
            name,
            missing if difference["mean"] is None else -difference["mean"],
            missing if difference["standard_error"] is None else difference["standard_error"],
        )
        for name, difference in result.summary["learned_minus"].items()
    ]
