"""Score combinations of hyperparameters; search a grid at random."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Float64

from optdyn.distributed._engines import Engine, Execution, Work
from optdyn.errors import UserError
from optdyn.inner_loop._batching import map_runs, runs_at_once
from optdyn.inner_loop._objective import Objective
from optdyn.inner_loop._problem_set import ProblemSet
from optdyn.inner_loop._unroll import unroll
from optdyn.optimizers._baselines import Baseline, get_baseline
from optdyn.random_streams import stream
from optdyn.search._search_table import (
    Grid,
    Round,
    SearchProtocol,
    SearchSettings,
    SearchTable,
    best,
    is_finished,
    require_same_settings,
)
from optdyn.tasks import Problem, Task
from optdyn.tasks._description import describe_task, task_from, with_options

Hyperparameters = Mapping[str, Float[np.ndarray, " combinations"]]
Scorer = Callable[[Hyperparameters], Float64[np.ndarray, " combinations"]]

COMBINATIONS_STREAM = "tuning combinations"
TUNING_STREAM = "tuning problems"
RESCORING_STREAM = "tuning rescoring problems"

FEWEST_RUNS = 256
"""The inner loops in a chunk, where more do not fit at once: a minute on two_moons."""


def score(
    baseline: Baseline,
    problems: ProblemSet,
    hyperparameters: Hyperparameters,
    *,
    at_once: int | None = None,
    mesh: Mesh | None = None,
) -> Float64[np.ndarray, " combinations"]:
    """The score of each combination of ``hyperparameters`` (arrays [K]).

    A score is the objective averaged over ``problems``, and +inf when any loss of any
    problem's curve, or the average itself, is not finite. All K × problems inner loops run
    in one compiled call, ``at_once`` of them (default: `runs_at_once`) vectorised
    together on each device of the one-axis ``mesh``.
    """
    scores = _scores(
        {name: jnp.asarray(column) for name, column in hyperparameters.items()},
        problems.problems,
        factory=baseline.factory,
        objective=problems.objective,
        at_once=_runs_at_once(baseline, problems.problems) if at_once is None else at_once,
        mesh=mesh,
    )
    return np.asarray(scores, np.float64)


@functools.partial(jax.jit, static_argnames=("factory", "objective", "at_once", "mesh"))
def _scores(
    hyperparameters: dict[str, Array],
    problems: Problem,
    *,
    factory: Callable[..., optax.GradientTransformation],
    objective: Objective,
    at_once: int,
    mesh: Mesh | None,
) -> Float[Array, " combinations"]:
    def run(combination: dict[str, Array], problem: Problem) -> Float[Array, ""]:
        losses = unroll(factory(**combination), problem, objective.num_steps).losses
        sound = jnp.all(jnp.isfinite(losses))
        return jnp.where(sound, objective.meta_loss(losses), jnp.inf)

    combinations = jax.tree.leaves(hyperparameters)[0].shape[0]
    count = jax.tree.leaves(problems)[0].shape[0]
    rows = jax.tree.map(lambda column: jnp.repeat(column, count), hyperparameters)
    again = jnp.tile(jnp.arange(count), combinations)
    repeated = jax.tree.map(lambda leaf: leaf[again], problems)
    each = map_runs(run, (rows, repeated), at_once, mesh)
    mean = jnp.mean(each.reshape(combinations, count), axis=1)
    return jnp.where(jnp.isfinite(mean), mean, jnp.inf)


def _runs_at_once(baseline: Baseline, problems: Problem) -> int:
    """`runs_at_once` of the baseline, whatever its hyperparameters."""
    middle = {axis.name: axis.values()[axis.points // 2] for axis in baseline.grid}
    return runs_at_once(baseline.factory(**middle), problems)


def random_search(
    baseline: Baseline,
    task: Task,
    *,
    seed: int,
    protocol: SearchProtocol = SearchProtocol(),
    execution: Execution = Execution(),
    on_chunk: Callable[[SearchTable], None] = lambda table: None,
    done: SearchTable | None = None,
) -> SearchTable:
    """Draw combinations from the grid, score all, rescore the best on fresh problems (C.3).

    ``protocol`` says how many combinations of ``baseline``'s hyperparameters are scored on
    how many problems of ``task``; the ``seed`` settles both draws.

    When the best (by its rescore) lies on an edge of the grid, the grid is
    widened there and the search starts over, for at most ``protocol.max_rounds`` rounds;
    `best` tells whether the last one's winner is interior. The table of the last
    round is returned, the others being summarised in its ``earlier``.

    ``on_chunk`` is given the unfinished table after each chunk of
    ``execution.runs_per_chunk`` inner loops; passed back as ``done``, a search goes on
    where that table stopped, to the same bits. A finished one returns at once.

    Raises `UserError` when ``done`` is of other settings, or when every combination diverged.
    """
    settings = SearchSettings.of(baseline, task, seed, protocol)
    if done is None:
        table = _new_round(settings, settings.grid, ())
    else:
        require_same_settings(done.settings, settings)
        table = done
    _require_finite_start(table, task)
    if is_finished(table):
        return table

    tuning = tuning_problems(task, settings)
    rescoring = dataclasses.replace(
        tuning, task=task, number=protocol.rescore_problems, stream=RESCORING_STREAM
    )
    at_once = execution.at_once or _runs_at_once(baseline, tuning.problems)
    runs_per_chunk = execution.runs_per_chunk or max(FEWEST_RUNS, at_once)

    def scored(
        table: SearchTable, rows: np.ndarray, problems: ProblemSet, most: int
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        work = _scoring(baseline, problems, at_once, execution.mesh)
        chunk = min(max(1, runs_per_chunk // problems.number), most)
        return _in_chunks(table, rows, execution.engine, work, chunk)

    while True:
        pending = table.to_score()
        for rows, results in scored(table, pending, tuning, protocol.num_samples):
            table = dataclasses.replace(table, scores=_with(table.scores, rows, results))
            on_chunk(table)
        _require_finite_start(table, task)
        pending = table.to_rescore()
        for rows, results in scored(table, pending, rescoring, protocol.rescore_top):
            table = dataclasses.replace(table, rescores=_with(table.rescores, rows, results))
            on_chunk(table)
        if is_finished(table):
            return table
        winner = best(table)
        widened = table.grid.widened(winner.edges)
        ended = Round(table.grid, winner.hyperparameters, winner.score, winner.edges)
        table = _new_round(settings, widened, (*table.earlier, ended))


def _require_finite_start(table: SearchTable, task: Task) -> None:
    """Raise `UserError` where all combinations diverged and the task alone is why."""
    if table.to_score().size or np.any(np.isfinite(table.scores)):
        return
    fault = tuning_problems(task, table.settings).fault_at_start()
    if fault:
        raise UserError(
            f"tuning {table.settings.baseline} on {table.settings.task}: every combination "
            f"diverged, as {fault} (look for a root, a norm or a logarithm of zero in the loss)"
        )


def tuning_problems(task: Task, settings: SearchSettings) -> ProblemSet:
    """The problems of ``task`` on which a search with ``settings`` scores combinations.

    Raises `UserError` for a ``stand_in`` option that the task does not take.
    """
    return ProblemSet(
        with_options(task, settings.stand_in),
        seed=settings.seed,
        number=settings.num_problems,
        objective=settings.objective,
        stream=TUNING_STREAM,
    )


def rerun_best(table: SearchTable, baseline: Baseline, task: Task) -> float:
    """The best combination's score on the tuning problems, computed again.

    ``baseline`` and ``task`` are those of the table's settings, so that
    it should equal `Best.tuning_score`. Raises `UserError` for a table without a
    best, or of another baseline or task.
    """
    settings, described = table.settings, describe_task(task)
    expected = dataclasses.replace(
        settings, baseline=baseline.name, task=described.name, task_options=described.options
    )
    require_same_settings(settings, expected)
    winner = {name: np.array([value]) for name, value in best(table).hyperparameters.items()}
    return float(score(baseline, tuning_problems(task, settings), winner)[0])


def _new_round(settings: SearchSettings, grid: Grid, earlier: tuple[Round, ...]) -> SearchTable:
    """The combinations of a round, none of them scored."""
    key = jax.random.fold_in(stream(settings.seed, COMBINATIONS_STREAM), len(earlier))
    indices = grid.sample(key, settings.num_samples)
    unscored = np.full(indices.shape[0], np.nan)
    return SearchTable(settings, grid, indices, unscored, unscored, earlier)


def _scoring(baseline: Baseline, problems: ProblemSet, at_once: int, mesh: Mesh | None) -> Work:
    """`score` on a set of problems, as work on chunks of combinations."""
    described = describe_task(problems.task)
    return Work(
        here=lambda: functools.partial(score, baseline, problems, at_once=at_once, mesh=mesh),
        maker=f"{__name__}:{scorer_of.__name__}",
        settings={
            "baseline": baseline.name,
            "task": dataclasses.asdict(described),
            "problems": {
                "seed": problems.seed,
                "number": problems.number,
                "stream": problems.stream,
            },
            "objective": dataclasses.asdict(problems.objective),
            "at_once": at_once,
        },
    )


def scorer_of(
    *,
    baseline: str,
    task: dict[str, Any],
    problems: dict[str, Any],
    objective: dict[str, Any],
    at_once: int,
) -> Scorer:
    """The scorer that a search uses, made on another machine from what JSON holds."""
    found = ProblemSet(
        task_from(task["name"], **task["options"]), objective=Objective(**objective), **problems
    )
    return functools.partial(score, get_baseline(baseline), found, at_once=at_once)


def _in_chunks(
    table: SearchTable, pending: np.ndarray, engine: Engine, work: Work, chunk: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows and their scores, ``chunk`` rows at a time."""
    columns = table.hyperparameters()
    chunks = [pending[start : start + chunk] for start in range(0, pending.size, chunk)]
    # Rows are repeated in a short last chunk so that one compiled shape serves all.
    filled = [np.resize(rows, chunk) for rows in chunks]
    values = ({name: column[rows] for name, column in columns.items()} for rows in filled)
    for rows, results in zip(chunks, engine.map(work, values), strict=True):
        yield rows, results[: rows.size]


def _with(column: np.ndarray, rows: np.ndarray, results: np.ndarray) -> np.ndarray:
    """A copy of ``column`` with ``results`` at ``rows``."""
    column = column.copy()
    column[rows] = results
    return column
