"""How each figure of the study is drawn from a task's results (see `optdyn.study._stories`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from optdyn import figures
from optdyn.evaluation import mean_curve
from optdyn.figures._style import finite, readable
from optdyn.inner_loop import MeanAndError, Objective
from optdyn.mechanisms import StageRow
from optdyn.random_streams import keys_at, stream
from optdyn.runs._distillation_run import Judged
from optdyn.runs._results import AnalysisResult, CheckpointRow
from optdyn.search import best
from optdyn.study._claims import bound_of
from optdyn.study._measures import stage_name, there
from optdyn.study._results import TaskResults
from optdyn.tasks import LinearRegression, TwoMoons, sample_batch
from optdyn.tasks._rosenbrock import X_RANGE, Y_RANGE, rosenbrock
from optdyn.tasks._two_moons import moons

FIGURE_STREAM = "figure problems"
SURFACE_POINTS = 161
STAGES_DRAWN = 12
STAGE, FINAL = "stage", "final"
ROW_OF_THRESHOLD = {
    "gain_gap": "one_mode_stands_out",
    "momentum_ratio": "mode_matches_tuned_momentum",
    "deviation": "one_mode_follows_the_full_optimizer",
}


@dataclasses.dataclass(frozen=True, eq=False)
class Drawn:
    """A picture and its numbers. ``task`` is "" for one of all tasks together.

    ``note`` says what it is of, beyond figure and task; ``variant`` keeps pictures of one
    figure and task apart. ``film``: the same as a GIF.
    """

    figure: Figure
    data: dict[str, Any]
    task: str = ""
    note: str = ""
    variant: str = ""
    film: bytes | None = None

    def entitled(self) -> Figure:
        """The picture with its task and note over it, for one who sees it alone."""
        words = ": ".join(filter(None, (readable(self.task), self.note)))
        return figures.entitled(self.figure, words) if words else self.figure


# Figures of all tasks together.


def schematic(_: Sequence[TaskResults]) -> Iterator[Drawn]:
    """Fig. 8."""
    yield Drawn(figures.optimizer_schematic(), {})


def comparison(results: Sequence[TaskResults]) -> Iterator[Drawn]:
    """Fig. 9."""
    scores = {r.task: there(r.summary).optimizers for r in results}
    yield Drawn(figures.performance_summary(scores), scores, note=_unseen(results))


def paired(results: Sequence[TaskResults]) -> Iterator[Drawn]:
    """Baseline minus learned: right of zero the learned optimizer wins."""
    differences = {
        r.task: {
            name: MeanAndError(-d.mean if np.isfinite(d.mean) else np.inf, d.standard_error)
            for name, d in there(r.summary).learned_minus.items()
        }
        for r in results
    }
    yield Drawn(figures.paired_differences(differences), differences, note=_unseen(results))


def _unseen(results: Sequence[TaskResults]) -> str:
    counts = sorted({len(e.losses) for r in results for e in r.evaluations.values()})
    return f"{' or '.join(map(str, counts))} unseen problems per task"


# Figures of one task.


def problems(result: TaskResults) -> Iterator[Drawn]:
    """Fig. 2: what a task's problems are like."""
    if result.task in PROBLEMS:
        yield dataclasses.replace(PROBLEMS[result.task](), task=result.task)


def _condition_numbers() -> Drawn:
    keys = keys_at(stream(0, FIGURE_STREAM), jnp.arange(2000))
    sampled = jax.jit(sample_batch, static_argnums=0)(LinearRegression(), keys)
    values = np.linalg.cond(np.asarray(sampled.data[0], float)) ** 2
    figure = figures.condition_numbers(values)
    return Drawn(figure, {"condition_number": values}, note="condition numbers of its problems")


def _surface() -> Drawn:
    x, y = np.linspace(*X_RANGE, SURFACE_POINTS), np.linspace(*Y_RANGE, SURFACE_POINTS)
    points = jnp.stack([*jnp.meshgrid(jnp.asarray(x), jnp.asarray(y))])
    loss = np.asarray(jnp.vectorize(rosenbrock, signature="(n)->()")(jnp.moveaxis(points, 0, -1)))
    data: dict[str, Any] = {"x": x, "y": y, "loss": loss}
    figure = figures.rosenbrock_surface(**data, minimum=(1.0, 1.0))
    return Drawn(figure, data, note="loss where problems start")


def _moons() -> Drawn:
    task = TwoMoons()
    features, labels = moons(task.points, task.noise)
    data: dict[str, Any] = {"features": features, "labels": labels}
    return Drawn(figures.two_moons_data(**data), data, note="points to classify")


PROBLEMS = {"linear_regression": _condition_numbers, "rosenbrock": _surface, "two_moons": _moons}


def searches(result: TaskResults) -> Iterator[Drawn]:
    """Figs. 10–12: every combination of every search of more than a learning rate."""
    tables = [table for table in there(result.tables).values() if len(table.grid.axes) > 1]
    if not tables:
        return
    data = {
        table.settings.baseline: {
            **table.hyperparameters(), "meta_objective": table.scores, "best": best(table).row,
        }
        for table in tables
    }  # fmt: skip
    tried = " or ".join(f"{count:,}" for count in sorted({t.scores.size for t in tables}))
    note = f"{tried} combinations per optimizer"
    yield Drawn(figures.hyperparameter_searches(tables), data, result.task, note)


def training(result: TaskResults) -> Iterator[Drawn]:
    """The meta-objective along meta-training."""
    rows = result.training or []
    data: dict[str, Any] = {
        name: np.array([getattr(row, name) for row in rows], float)
        for name in ("meta_step", "meta_objective", "exploded")
    }
    note = f"meta-training, {len(rows):,} meta-steps"
    yield Drawn(figures.training_curve(*data.values()), data, result.task, note)


def loss_curves(result: TaskResults) -> Iterator[Drawn]:
    """Every optimizer's loss against iteration."""
    objective = Objective(normalization="first" if result.relative else "none")
    curves = {
        name: mean_curve(np.asarray(e.losses, float), objective)
        for name, e in result.evaluations.items()
    }
    count = len(next(iter(result.evaluations.values())).losses)
    yield Drawn(
        figures.loss_curves(curves, relative=result.relative), {"curves": curves}, result.task,
        f"{count} unseen problems, mean ± s.e.",
    )  # fmt: skip


def eigenvalues(result: TaskResults) -> Iterator[Drawn]:
    """Fig. 7a, at the momentum stage and at the end."""
    for row, note, variant in _two_checkpoints(there(result.analysis)):
        data: dict[str, Any] = {"meta_step": row.meta_step, "beta": row.modes.beta}
        yield Drawn(figures.eigenvalue_plane(row.modes.beta), data, result.task, note, variant)


def modes_as_momentum(result: TaskResults) -> Iterator[Drawn]:
    """Fig. 7b, at the momentum stage and at the end."""
    analysis = there(result.analysis)
    best = min(result.linear.rows, key=lambda row: row.meta_objective) if result.linear else None
    modes = zip(best.alpha, best.beta, strict=True) if best else ()
    linear = [figures.MomentumPoint(*mode) for mode in modes]
    for row, note, variant in _two_checkpoints(analysis):
        data: dict[str, Any] = {
            "beta": row.modes.beta,
            "alpha": row.modes.alpha,
            "tuned": analysis.tuned,
            "theory": analysis.theory,
            "linear": linear,
        }
        figure = figures.momentum_hyperparameters(**data)
        data["meta_step"] = row.meta_step
        yield Drawn(figure, data, result.task, note, variant)


def one_mode(result: TaskResults) -> Iterator[Drawn]:
    """Fig. 7c: one mode against the whole optimizer."""
    analysis = there(result.analysis)
    found = analysis.curves
    figure = figures.reduction_losses(
        found.full, found.one_mode, found.tuned, relative=result.relative
    )
    yield Drawn(figure, vars(found), result.task, stage_name(analysis))


def stages(result: TaskResults) -> Iterator[Drawn]:
    """Some of the stored checkpoints, evenly over them, with the momentum stage among them.

    One that does not move yet (every α is 0) has nothing to show.
    """
    analysis = there(result.analysis)
    chosen = analysis.momentum_stage
    rows = analysis.checkpoints
    others = [row for row in rows if np.any(row.modes.alpha) and row.meta_step != chosen]
    spread = np.linspace(0, len(others) - 1, min(STAGES_DRAWN - 1, len(others)))
    picked = [others[index] for index in spread.round().astype(int)]
    picked += [row for row in rows if row.meta_step == chosen]
    ordered = sorted(picked, key=lambda row: row.meta_step)
    data: dict[str, Any] = {
        "meta_step": np.array([row.meta_step for row in ordered]),
        "beta": np.stack([row.modes.beta for row in ordered]),
        "alpha": np.stack([row.modes.alpha for row in ordered]),
        "tuned": analysis.tuned,
        "theory": analysis.theory,
        "chosen": chosen,
    }
    note = f"{len(ordered)} checkpoints; framed: {stage_name(analysis)}"
    yield Drawn(figures.mode_stages(**data), data, result.task, note)


def emergence(result: TaskResults) -> Iterator[Drawn]:
    """How like momentum each checkpoint is."""
    analysis = there(result.analysis)
    names = [field.name for field in dataclasses.fields(StageRow)]
    data: dict[str, Any] = {
        "checkpoints": [
            StageRow(**{name: getattr(row, name) for name in names}) for row in analysis.checkpoints
        ],
        "tuned": analysis.tuned,
        "theory": analysis.theory,
        "chosen": analysis.momentum_stage,
        "thresholds": {
            name: bound_of(row).level_for(result.task) for name, row in ROW_OF_THRESHOLD.items()
        },
    }
    note = f"marked: {stage_name(analysis)}"
    yield Drawn(figures.momentum_stage(**data), data, result.task, note)


def all_modes(result: TaskResults) -> Iterator[Drawn]:
    """Every mode of every checkpoint."""
    analysis = there(result.analysis)
    data: dict[str, Any] = {
        "meta_step": np.array([row.meta_step for row in analysis.checkpoints]),
        "beta": np.stack([row.modes.beta for row in analysis.checkpoints]),
        "gain": np.stack([finite(row.modes.gain) for row in analysis.checkpoints]),
    }
    figure = figures.modes_over_training(**data, chosen=analysis.momentum_stage)
    yield Drawn(figure, data, result.task, f"{len(analysis.checkpoints)} checkpoints")


def tracks(result: TaskResults) -> Iterator[Drawn]:
    """Modes followed from checkpoint to checkpoint, and the same as a film."""
    found = there(result.mechanisms).tracks
    data: dict[str, Any] = {
        "meta_step": np.array(found.meta_step), "beta": found.beta, "gain": finite(found.gain),
    }  # fmt: skip
    figure = figures.mode_tracks(**data, chosen=there(result.analysis).momentum_stage)
    note = "modes followed through meta-training"
    yield Drawn(figure, data, result.task, note, film=figures.mode_film(**data))


def mechanisms(result: TaskResults) -> Iterator[Drawn]:
    """What the optimizer does beyond its modes."""
    found = there(result.mechanisms)
    data: dict[str, Any] = {"measured": found.mechanisms, "closed_forms": found.closed_forms}
    yield Drawn(figures.mechanisms(**data), data, result.task, f"meta-step {found.meta_step:,}")


def advantage_kept(result: TaskResults) -> Iterator[Drawn]:
    """How far readable optimizers come, and what each mechanism adds."""
    found = there(result.distillation)
    data: dict[str, Any] = {
        "sizes": {
            f"+ {row.added}" if place else row.added: _kept(row)
            for place, row in enumerate(found.sizes)
        },
        "without": {f"without {name}": _kept(row) for name, row in found.without.items()},
        "learned_without": {name: _kept(row) for name, row in found.learned_without.items()},
        "baseline": found.baseline,
        "aim": bound_of("distilled_keeps_the_advantage").level_for(result.task),
    }
    note = f"chosen: {found.best.name}, {found.best.numbers} numbers"
    yield Drawn(figures.advantage_kept(**data), data, result.task, note)


def _two_checkpoints(analysis: AnalysisResult) -> list[tuple[CheckpointRow, str, str]]:
    """The momentum stage and the last checkpoint, with a note and a variant's name.

    One alone where they are the same checkpoint.
    """
    last, own = analysis.row(analysis.final), not analysis.judged.training
    if own and analysis.momentum_stage == analysis.final:
        return [(analysis.stage, f"{stage_name(analysis)}, last checkpoint", STAGE)]
    return [
        (analysis.stage, stage_name(analysis), STAGE),
        (last, f"meta-step {analysis.final:,}, last checkpoint", FINAL),
    ]


def _kept(row: Judged) -> MeanAndError[float]:
    return MeanAndError(*finite([row.kept.fraction, row.kept.standard_error]).tolist())
