"""Score combinations of hyperparameters; search a grid at random."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from optdyn.errors import require_positive_int
from optdyn.inner_loop._batching import map_runs, runs_at_once
from optdyn.inner_loop._objective import meta_loss
from optdyn.inner_loop._unroll import unroll
from optdyn.optimizers._baselines import get_baseline
from optdyn.random_streams import keys_at, stream
from optdyn.search._engines import Engine, LocalEngine, Work
from optdyn.search._grid import Grid
from optdyn.search._search_table import (
    Round,
    SearchSettings,
    SearchTable,
    best,
    describe_task,
    is_finished,
    require_same_settings,
)
from optdyn.tasks import Problem, make_task, sample_batch

if TYPE_CHECKING:
    import optax
    from jax.sharding import Mesh
    from jaxtyping import Array, Float, Float64, Key

    from optdyn.optimizers._baselines import Baseline
    from optdyn.tasks import Task

    Hyperparameters = Mapping[str, Float[np.ndarray, " combinations"]]
    Scorer = Callable[[Hyperparameters], Float64[np.ndarray, " combinations"]]

COMBINATIONS_STREAM = "tuning combinations"
TUNING_STREAM = "tuning problems"
RESCORING_STREAM = "tuning rescoring problems"

FEWEST_RUNS = 256
"""The inner loops in a chunk, where more do not fit at once: a minute on two_moons."""


def score(
    baseline: Baseline,
    task: Task,
    hyperparameters: Hyperparameters,
    problem_keys: Key[Array, " problems"],
    *,
    num_steps: int = 200,
    normalization: str = "none",
    at_once: int | None = None,
    mesh: Mesh | None = None,
) -> Float64[np.ndarray, " combinations"]:
    """The score of each combination of ``hyperparameters`` (arrays [K]).

    A score is `meta_loss` averaged over the problems drawn from
    ``problem_keys``, and +inf when any loss of any problem's curve, or the
    average itself, is not finite. All K × problems inner loops run in one
    compiled call, ``at_once`` of them (default: `runs_at_once`) vectorised
    together on each device of the one-axis ``mesh``.
    """
    scorer = _scorer(
        baseline,
        sample_batch(task, problem_keys),
        num_steps=num_steps,
        normalization=normalization,
        at_once=at_once,
        mesh=mesh,
    )
    return scorer(hyperparameters)


def _scorer(
    baseline: Baseline,
    problems: Problem,
    *,
    num_steps: int,
    normalization: str,
    at_once: int | None,
    mesh: Mesh | None,
) -> Scorer:
    """`score` on a batch of problems, as a function of the hyperparameters alone."""
    if at_once is None:
        at_once = _runs_at_once(baseline, problems)

    def scorer(hyperparameters: Hyperparameters) -> Float64[np.ndarray, " combinations"]:
        scores = _scores(
            {name: jnp.asarray(column) for name, column in hyperparameters.items()},
            problems,
            factory=baseline.factory,
            num_steps=num_steps,
            normalization=normalization,
            at_once=at_once,
            mesh=mesh,
        )
        return np.asarray(scores, np.float64)

    return scorer


@functools.partial(
    jax.jit, static_argnames=("factory", "num_steps", "normalization", "at_once", "mesh")
)
def _scores(
    hyperparameters: dict[str, Array],
    problems: Problem,
    *,
    factory: Callable[..., optax.GradientTransformation],
    num_steps: int,
    normalization: str,
    at_once: int,
    mesh: Mesh | None,
) -> Float[Array, " combinations"]:
    def run(combination: dict[str, Array], problem: Problem) -> Float[Array, ""]:
        losses = unroll(factory(**combination), problem, num_steps).losses
        sound = jnp.all(jnp.isfinite(losses))
        return jnp.where(sound, meta_loss(losses, normalization), jnp.inf)

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
    num_samples: int = 2500,
    num_problems: int = 32,
    num_steps: int = 200,
    normalization: str = "none",
    grid: Grid | None = None,
    rescore_top: int = 50,
    rescore_problems: int = 64,
    max_rounds: int = 8,
    at_once: int | None = None,
    runs_per_chunk: int | None = None,
    mesh: Mesh | None = None,
    engine: Engine = LocalEngine(),
    on_chunk: Callable[[SearchTable], None] = lambda table: None,
    done: SearchTable | None = None,
) -> SearchTable:
    """Draw combinations from the grid, score all, rescore the best on fresh problems (C.3).

    ``num_samples`` distinct combinations of ``baseline``'s hyperparameters are scored on
    ``num_problems`` problems of ``task``, over ``num_steps`` with the objective's
    ``normalization``; the best ``rescore_top`` again on ``rescore_problems`` others. The
    ``seed`` settles both draws. ``at_once`` and ``mesh``: see `score`.

    When the best (by its rescore) lies on an edge of the grid, the grid is
    widened there and the search starts over, for at most ``max_rounds`` rounds;
    `best` tells whether the last one's winner is interior. The table of the last
    round is returned, the others being summarised in its ``earlier``.

    ``on_chunk`` is given the unfinished table after each chunk of
    ``runs_per_chunk`` inner loops; passed back as ``done``, a search goes on
    where that table stopped, to the same bits. A finished one returns at once.
    ``engine`` does the chunks: another one than the local needs ``baseline`` and
    ``task`` to be in their registries, and takes no notice of ``mesh``.

    Raises `UserError` for bad counts, when ``done`` is of other settings, or
    when every combination diverged.
    """
    for count, value in {"at_once": at_once, "runs_per_chunk": runs_per_chunk}.items():
        if value is not None:
            require_positive_int(count, value)
    name, options = describe_task(task)
    settings = SearchSettings(
        baseline=baseline.name,
        task=name,
        task_options=options,
        seed=seed,
        grid=Grid(baseline.grid) if grid is None else grid,
        num_samples=num_samples,
        num_problems=num_problems,
        num_steps=num_steps,
        normalization=normalization,
        rescore_top=rescore_top,
        rescore_problems=rescore_problems,
        max_rounds=max_rounds,
    )
    if done is None:
        table = _new_round(settings, settings.grid, ())
    else:
        require_same_settings(done.settings, settings)
        table = done
    if is_finished(table):
        return table

    tuning = sample_batch(task, _keys(seed, TUNING_STREAM, num_problems))
    rescoring = sample_batch(task, _keys(seed, RESCORING_STREAM, rescore_problems))
    if at_once is None:
        at_once = _runs_at_once(baseline, tuning)
    if runs_per_chunk is None:
        runs_per_chunk = max(FEWEST_RUNS, at_once)
    plain: dict[str, Any] = {
        "num_steps": num_steps,
        "normalization": normalization,
        "at_once": at_once,
    }

    def work(problems: Problem, stream_name: str, count: int) -> Work:
        problem_settings = {"seed": seed, "stream_name": stream_name, "num_problems": count}
        return Work(
            here=lambda: _scorer(baseline, problems, mesh=mesh, **plain),
            maker=f"{__name__}:{scorer_of.__name__}",
            settings={
                "baseline": baseline.name,
                "task": name,
                "task_options": options,
                **problem_settings,
                **plain,
            },
        )

    score_work = work(tuning, TUNING_STREAM, num_problems)
    rescore_work = work(rescoring, RESCORING_STREAM, rescore_problems)
    chunk = min(max(1, runs_per_chunk // num_problems), num_samples)
    rescoring_chunk = min(max(1, runs_per_chunk // rescore_problems), rescore_top)
    while True:
        for rows, results in _in_chunks(table, table.to_score(), engine, score_work, chunk):
            table = dataclasses.replace(table, scores=_with(table.scores, rows, results))
            on_chunk(table)
        for rows, results in _in_chunks(
            table, table.to_rescore(), engine, rescore_work, rescoring_chunk
        ):
            table = dataclasses.replace(table, rescores=_with(table.rescores, rows, results))
            on_chunk(table)
        if is_finished(table):
            return table
        winner = best(table)
        widened = table.grid.widened(winner.edges)
        ended = Round(table.grid, winner.hyperparameters, winner.score, winner.edges)
        table = _new_round(settings, widened, (*table.earlier, ended))


def rerun_best(table: SearchTable) -> float:
    """The best combination's score on the tuning problems, computed again.

    Task, problems and hyperparameters are those of the table's settings, so that
    it should equal `Best.tuning_score`. Raises `UserError` for a table without a
    best, or of a task or an optimizer that is not in its registry.
    """
    settings = table.settings
    scores = score(
        get_baseline(settings.baseline),
        make_task(settings.task, **settings.task_options),
        {name: np.array([value]) for name, value in best(table).hyperparameters.items()},
        _keys(settings.seed, TUNING_STREAM, settings.num_problems),
        num_steps=settings.num_steps,
        normalization=settings.normalization,
    )
    return float(scores[0])


def _keys(seed: int, stream_name: str, count: int) -> Key[Array, " count"]:
    """The keys of one stream's problems."""
    return keys_at(stream(seed, stream_name), jnp.arange(count))


def _new_round(settings: SearchSettings, grid: Grid, earlier: tuple[Round, ...]) -> SearchTable:
    """The combinations of a round, none of them scored."""
    key = jax.random.fold_in(stream(settings.seed, COMBINATIONS_STREAM), len(earlier))
    indices = grid.sample(key, settings.num_samples)
    unscored = np.full(indices.shape[0], np.nan)
    return SearchTable(settings, grid, indices, unscored, unscored, earlier)


def scorer_of(
    *,
    baseline: str,
    task: str,
    task_options: dict[str, Any],
    seed: int,
    stream_name: str,
    num_problems: int,
    num_steps: int,
    normalization: str,
    at_once: int,
) -> Scorer:
    """The scorer that a search with these settings uses, made from names."""
    keys = _keys(seed, stream_name, num_problems)
    return _scorer(
        get_baseline(baseline),
        sample_batch(make_task(task, **task_options), keys),
        num_steps=num_steps,
        normalization=normalization,
        at_once=at_once,
        mesh=None,
    )


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
