"""Every figure of a study, drawn from its results and saved beside its numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from optdyn import figures
from optdyn.evaluation import mean_curve
from optdyn.figures import (
    Curve,
    MomentumPoint,
    MomentumStage,
    Score,
    SearchPanel,
    StoredModes,
    entitled,
    save_figure,
)
from optdyn.figures._style import readable
from optdyn.inner_loop import Objective
from optdyn.random_streams import keys_at, stream
from optdyn.runs._progress import progress
from optdyn.runs._results import CheckpointRow
from optdyn.search import SearchTable, best
from optdyn.study._claims import THRESHOLDS
from optdyn.study._explanation import draw_explanation
from optdyn.study._results import TaskResults
from optdyn.tasks import LinearRegression, TwoMoons, sample_batch
from optdyn.tasks._rosenbrock import X_RANGE, Y_RANGE, rosenbrock
from optdyn.tasks._two_moons import moons

FIGURE_STREAM = "figure problems"
SURFACE_POINTS = 161
STAGES_DRAWN = 12
SEARCH_FIGURES = {"linear_regression": "fig10", "rosenbrock": "fig11", "two_moons": "fig12"}
SYMBOLS = {"beta": "β", "gamma": "γ", "beta1": "β₁", "beta2": "β₂"}


def draw_study(results: Sequence[TaskResults], folder: Path) -> None:
    """Draw the figures that span tasks, then each task's own, into ``folder``."""
    save_figure(figures.optimizer_schematic(), {}, folder, "fig08")
    _draw_comparison(results, folder)
    with progress("drawing figures", len(results)) as advance:
        for count, result in enumerate(results, start=1):
            if result.task in TASK_FIGURES:
                TASK_FIGURES[result.task](folder)
            _draw_searches(result, folder)
            _draw_training(result, folder)
            _draw_loss_curves(result, folder)
            _draw_modes(result, folder)
            draw_explanation(result, folder)
            advance(count, result.task)


def _draw_comparison(results: Sequence[TaskResults], folder: Path) -> None:
    counts = sorted({len(e.losses) for r in results for e in r.evaluations.values()})
    problems = f"{' or '.join(map(str, counts))} unseen problems a task"
    scores = {r.task: _scores(r) for r in results}
    summary = entitled(figures.performance_summary(scores), f"Performance on {problems}")
    save_figure(summary, scores, folder, "fig09")
    differences = {r.task: _differences(r) for r in results}
    paired = figures.paired_differences(differences)
    entitled(paired, f"Paired differences on {problems}")
    save_figure(paired, differences, folder, "fig09_paired")


def _draw_condition_numbers(folder: Path) -> None:
    keys = keys_at(stream(0, FIGURE_STREAM), jnp.arange(2000))
    problems = jax.jit(sample_batch, static_argnums=0)(LinearRegression(), keys)
    values = np.linalg.cond(np.asarray(problems.data[0], float)) ** 2
    figure = entitled(figures.condition_numbers(values), "linear regression: sampled problems")
    save_figure(figure, {"condition_number": values}, folder, "fig02a")


def _draw_rosenbrock(folder: Path) -> None:
    x, y = np.linspace(*X_RANGE, SURFACE_POINTS), np.linspace(*Y_RANGE, SURFACE_POINTS)
    points = jnp.stack([*jnp.meshgrid(jnp.asarray(x), jnp.asarray(y))])
    loss = np.asarray(jnp.vectorize(rosenbrock, signature="(n)->()")(jnp.moveaxis(points, 0, -1)))
    data = {"x": x, "y": y, "loss": loss}
    figure = figures.rosenbrock_surface(**data, minimum=(1.0, 1.0))
    entitled(figure, "Rosenbrock: loss where problems start")
    save_figure(figure, data, folder, "fig02b")


def _draw_two_moons(folder: Path) -> None:
    task = TwoMoons()
    features, labels = moons(task.points, task.noise)
    data = {"features": features, "labels": labels}
    figure = entitled(figures.two_moons_data(**data), "two moons: points to classify")
    save_figure(figure, data, folder, "fig02c")


TASK_FIGURES: dict[str, Callable[[Path], None]] = {
    "linear_regression": _draw_condition_numbers,
    "rosenbrock": _draw_rosenbrock,
    "two_moons": _draw_two_moons,
}


def _draw_searches(result: TaskResults, folder: Path) -> None:
    panels = [panel for table in result.tables.values() for panel in _panels(table)]
    name = SEARCH_FIGURES.get(result.task, f"hyperparameter_search_{result.task}")
    figure = figures.hyperparameter_searches(panels)
    counts = sorted({panel.meta_objective.size for panel in panels})
    tried = " or ".join(f"{count:,}" for count in counts)
    entitled(figure, f"{readable(result.task)}: {tried} combinations an optimizer")
    save_figure(figure, {"panels": panels}, folder, name)


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
    data = {name: np.array([getattr(row, name) for row in result.training]) for name in names}
    figure = figures.training_curve(*data.values())
    entitled(figure, f"{readable(result.task)}: meta-training")
    save_figure(figure, data, folder, f"training_curve_{result.task}")


def _draw_loss_curves(result: TaskResults, folder: Path) -> None:
    objective = Objective(normalization=result.normalization)
    curves = [
        Curve(name, **vars(mean_curve(np.asarray(e.losses, float), objective)))
        for name, e in result.evaluations.items()
    ]
    figure = figures.loss_curves(curves, relative=result.normalization == "first")
    problems = len(next(iter(result.evaluations.values())).losses)
    entitled(figure, f"{readable(result.task)}: {problems} unseen problems, mean ± s.e.")
    save_figure(figure, {"curves": curves}, folder, f"loss_curves_{result.task}")


def _draw_modes(result: TaskResults, folder: Path) -> None:
    analysis = result.analysis
    tuned = MomentumPoint(analysis.tuned.alpha, analysis.tuned.beta)
    theory = None if analysis.theory is None else MomentumPoint(**vars(analysis.theory))
    paper = result.task == "linear_regression"
    chosen = analysis.momentum_stage
    stage_title = f"{readable(result.task)}: meta-step {chosen:,}, momentum stage"
    final_title = f"{readable(result.task)}: meta-step {analysis.final:,}, last checkpoint"
    for step, variant, title in (
        (chosen, "stage", stage_title),
        (analysis.final, "final", final_title),
    ):
        row = analysis.row(step)
        suffix = "" if paper and variant == "stage" else f"_{result.task}_{variant}"
        _draw_checkpoint(row, tuned, theory, folder, suffix, title)
    curves = {
        name: Curve(label, **vars(getattr(analysis.curves, name)))
        for name, label in (("full", "learned"), ("one_mode", "one mode"), ("tuned", "momentum"))
    }
    figure = figures.reduction_losses(
        curves["full"],
        curves["one_mode"],
        curves["tuned"],
        relative=result.normalization == "first",
    )
    entitled(figure, stage_title)
    save_figure(figure, curves, folder, "fig07c" if paper else f"fig07c_{result.task}")
    _draw_stages(result, tuned, theory, folder)
    _draw_emergence(result, tuned, theory, folder)


def _draw_checkpoint(
    row: CheckpointRow,
    tuned: MomentumPoint,
    theory: MomentumPoint | None,
    folder: Path,
    suffix: str,
    title: str,
) -> None:
    modes = _stored_modes(row)
    data = {"meta_step": modes.meta_step, "beta": modes.beta}
    plane = entitled(figures.eigenvalue_plane(modes.beta), title)
    save_figure(plane, data, folder, f"fig07a{suffix}")
    figure = figures.momentum_hyperparameters(modes.beta, modes.alpha, tuned, theory)
    save_figure(
        entitled(figure, title),
        {**data, "alpha": modes.alpha, "tuned": tuned, "theory": theory},
        folder,
        f"fig07b{suffix}",
    )


def _stored_modes(row: CheckpointRow) -> StoredModes:
    return StoredModes(row.meta_step, row.modes.beta, row.modes.alpha)


def _draw_stages(
    result: TaskResults, tuned: MomentumPoint, theory: MomentumPoint | None, folder: Path
) -> None:
    """Some of the stored stages, evenly over them, with the momentum stage among them.

    One that does not move yet (every α is 0) has nothing to show.
    """
    chosen = result.analysis.momentum_stage
    stored = [_stored_modes(row) for row in result.analysis.checkpoints]
    others = [s for s in stored if np.any(s.alpha) and s.meta_step != chosen]
    spread = np.linspace(0, len(others) - 1, min(STAGES_DRAWN - 1, len(others)))
    picked = [others[index] for index in spread.round().astype(int)]
    picked += [s for s in stored if s.meta_step == chosen]
    stages = sorted(picked, key=lambda s: s.meta_step)
    figure = figures.mode_stages(stages, tuned, theory, chosen)
    save_figure(
        entitled(figure, f"{readable(result.task)}: modes at stages of meta-training"),
        {"stages": stages, "tuned": tuned, "theory": theory, "chosen": chosen},
        folder,
        f"mode_stages_{result.task}",
    )


def _draw_emergence(
    result: TaskResults, tuned: MomentumPoint, theory: MomentumPoint | None, folder: Path
) -> None:
    analysis, rows = result.analysis, result.analysis.checkpoints
    stage = MomentumStage(
        **{
            name: np.array([getattr(row, name) for row in rows])
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
        tuned_meta_objective=analysis.tuned.meta_objective,
        chosen=analysis.momentum_stage,
        thresholds=THRESHOLDS,
    )
    task = readable(result.task)
    figure = entitled(figures.momentum_stage(stage), f"{task}: through meta-training")
    save_figure(figure, {"stage": stage}, folder, f"momentum_stage_{result.task}")
    data = {
        "meta_step": stage.meta_step,
        "beta": np.stack([row.modes.beta for row in rows]),
        "gain": np.stack([row.modes.gain for row in rows]),
    }
    figure = figures.modes_over_training(**data, chosen=stage.chosen)
    entitled(figure, f"{task}: every mode of every stored checkpoint")
    save_figure(figure, data, folder, f"modes_over_training_{result.task}")


def _scores(result: TaskResults) -> list[Score]:
    return [
        Score(name, evaluation.mean, evaluation.standard_error)
        for name, evaluation in result.evaluations.items()
    ]


def _differences(result: TaskResults) -> list[Score]:
    """Baseline minus learned: right of zero the learned optimizer wins."""
    return [
        Score(
            name,
            -difference.mean if np.isfinite(difference.mean) else np.inf,
            difference.standard_error,
        )
        for name, difference in result.summary.learned_minus.items()
    ]
