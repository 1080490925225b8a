"""Baselines and linear optimizers tuned in a run folder: resumable chunk by chunk."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from optdyn.distillation import Fitting, LinearReference, Momenta, tune_linear_references
from optdyn.errors import UserError
from optdyn.evaluation import VALIDATION_STREAM
from optdyn.meta_training import MetaTraining
from optdyn.optimizers._baselines import BASELINES, Baseline
from optdyn.runs import _store as files
from optdyn.runs._progress import progress
from optdyn.runs._results import HeldOut
from optdyn.runs._run_folder import RunFolder, folder_name
from optdyn.search import (
    Execution,
    Grid,
    SearchProtocol,
    SearchSettings,
    SearchTable,
    best,
    random_search,
    rerun_best,
)
from optdyn.search._search_table import Round
from optdyn.tasks import Task

TUNING = "tuning"
RERUNS = "tuning_reruns.json"
LINEAR = "linear_references.json"
BATCH = 64
"""Problems a meta-step: a few numbers have a cheap gradient, which should be precise."""
SMALLEST_BETA = 1e-3
"""A momentum of 0 has no logit to start from."""


@dataclasses.dataclass(frozen=True)
class Rerun:
    """The score of a search's best combination, as ``stored`` and when run again."""

    hyperparameters: dict[str, float]
    stored: float
    rerun: float


@dataclasses.dataclass(frozen=True)
class RerunsResult:
    """``tuning_reruns.json``: one `Rerun` a baseline."""

    baselines: dict[str, Rerun]


def tune(
    run: RunFolder,
    task: Task,
    baseline: Baseline,
    protocol: SearchProtocol,
    *,
    seed: int,
    execution: Execution = Execution(),
) -> SearchTable:
    """`random_search`, with its table in the task's ``tuning/<baseline>.parquet``.

    Goes on after the last chunk of an interrupted search; leaves a finished one
    as it is. Raises `UserError` for settings that differ from the folder's.
    """
    settings = {"seed": seed, "protocol": protocol}
    name = run.settle_work("tune", task, settings, baseline.name)
    path = table_path(run.task_folder(task), baseline.name)
    with progress(f"tuning {baseline.name} on {name}", protocol.num_samples) as advance:

        def save(table: SearchTable) -> None:
            save_table(path, table)
            lowest = np.nanmin(table.scores)
            scored = table.scores.size - table.to_score().size
            advance(scored, f"round {table.round + 1}, lowest meta-objective {lowest:.4g}")

        done = files.read_if_sound(
            path, SearchTable, "starting the search over", lambda path, _: load_table(path)
        )
        return random_search(
            baseline, task, seed=seed, protocol=protocol, execution=execution, on_chunk=save,
            done=done,
        )  # fmt: skip


def table_path(task_folder: Path, baseline: str) -> Path:
    """The file of a baseline's search table in a task's folder."""
    return task_folder / TUNING / f"{baseline}.parquet"


def load_tuned(task_folder: Path, baseline: str) -> SearchTable:
    """A baseline's search table in a task's folder.

    Raises `UserError` where it is missing or damaged, or of another baseline or task.
    """
    path = table_path(task_folder, baseline)
    if not path.exists():
        raise UserError(
            f"--out: {task_folder} has no tuned {baseline} (run optdyn tune --baseline {baseline} "
            f"--out {task_folder.parent} first)"
        )
    table = load_table(path)
    found = table.settings.baseline, folder_name(table.settings.task)
    if found != (baseline, task_folder.name):
        raise UserError(
            f"tuning table {path}: is of {found[0]} on {found[1]}, not of {baseline} on "
            f"{task_folder.name}"
        )
    return table


def tuned_values(task_folder: Path, baseline: str) -> dict[str, float]:
    """The best hyperparameters of a baseline's search; errors as in `load_tuned` and `best`."""
    return best(load_tuned(task_folder, baseline)).hyperparameters


def load_tables(task_folder: Path) -> dict[str, SearchTable]:
    """A task folder's search tables by baseline, in the order of their names."""
    paths = sorted((task_folder / TUNING).glob("*.parquet"))
    return {path.stem: load_tuned(task_folder, path.stem) for path in paths}


def rerun_tables(
    run: RunFolder, task: Task, baselines: Mapping[str, Baseline] = BASELINES
) -> RerunsResult:
    """Run the best combination of each stored search of ``baselines`` again (`rerun_best`).

    The task's ``tuning_reruns.json`` has, for each baseline, the ``stored`` and the
    ``rerun`` score on the tuning problems. A search whose best has been run again already
    is left alone.
    """
    folder = run.task_folder(task)
    otherwise = "running tuned baselines again"
    known = files.read_if_sound(folder / RERUNS, RerunsResult, otherwise) or RerunsResult({})
    reruns = {}
    tables = {name: table for name, table in load_tables(folder).items() if name in baselines}
    with progress(otherwise, len(tables)) as advance:
        for count, (name, table) in enumerate(tables.items(), start=1):
            winner, before = best(table), known.baselines.get(name)
            wanted = winner.hyperparameters, winner.tuning_score
            if before is None or (before.hyperparameters, before.stored) != wanted:
                before = Rerun(*wanted, rerun_best(table, baselines[name], task))
                advance(count, name)
            reruns[name] = before
    result = RerunsResult(reruns)
    if result != known:
        files.write_result(folder / RERUNS, result)
    return result


# Search tables as Parquet files: one row a combination, settings in the metadata.


@dataclasses.dataclass(frozen=True)
class TableContent:
    """What stands in a search table's file beside its columns."""

    settings: SearchSettings
    grid: Grid
    earlier: tuple[Round, ...]


def save_table(path: Path, table: SearchTable) -> None:
    """Write a search table, finished or not, atomically. Raises `UserError`.

    Columns: each hyperparameter, its ``<name>_index`` on the grid, ``score``,
    ``rescore`` (NaN: none, +inf: diverged), ``round``.
    """
    import pyarrow

    indices = {
        f"{name}_index": np.ascontiguousarray(column, np.int32)
        for name, column in zip(table.grid.names, table.indices.T, strict=True)
    }
    columns = {
        **table.hyperparameters(),
        **indices,
        "score": table.scores,
        "rescore": table.rescores,
        "round": np.full(table.scores.size, table.round, np.int32),
    }
    content = TableContent(table.settings, table.grid, table.earlier)
    files.write_bytes(path, files.table_bytes(pyarrow.table(columns), content))


def load_table(path: str | Path) -> SearchTable:
    """The search table in a file of `save_table`.

    Raises `UserError`, naming the first fault, for a file that is missing, damaged, or not
    such a table.
    """
    try:
        table, content = files.read_table(Path(path), TableContent)
        names = [f"{name}_index" for name in content.grid.names]
        missing = {*names, "score", "rescore"} - {*table.column_names}
        if missing:
            raise UserError(f"{path}: column {min(missing)} is missing")
    except UserError as error:
        raise UserError(f"tuning table {error}") from None
    return SearchTable(
        settings=content.settings,
        grid=content.grid,
        indices=np.stack([table.column(name).to_numpy() for name in names], axis=1),
        scores=table.column("score").to_numpy(),
        rescores=table.column("rescore").to_numpy(),
        earlier=content.earlier,
    )


# The best linear optimizers of a task, tuned by gradient.


@dataclasses.dataclass(frozen=True)
class LinearReferencesResult:
    """``linear_references.json``: with one mode, with two and with four.

    ``momentum``: the tuned momentum that they start from.
    """

    momentum: dict[str, float]
    rows: list[LinearReference]


def tune_linear(
    run: RunFolder, task: Task, held_out: HeldOut, protocol: MetaTraining, fitting: Fitting
) -> LinearReferencesResult:
    """`tune_linear_references` from the folder's tuned momentum, judged on ``held_out``.

    The task's ``linear_references.json`` holds them; `evaluate_all` runs them beside the tuned
    baselines. Where they are there already nothing is done. ``protocol``: the learned
    optimizer's, of which the unroll and the containment count.

    Raises `UserError` for settings that differ from the folder's.
    """
    settings = {"held_out": held_out, "protocol": protocol, "fitting": fitting}
    run.settle_work("linear", task, settings)
    folder = run.task_folder(task)
    tuned = tuned_values(folder, "momentum")
    with contextlib.suppress(UserError):
        found = files.read_result(folder / LINEAR, LinearReferencesResult)
        if found.momentum == tuned:
            return found
    problems = held_out.problems(task, VALIDATION_STREAM)
    curves = problems.curves(Momenta.as_optax)
    references = tune_linear_references(
        task,
        dataclasses.replace(protocol, batch_size=BATCH, chunk=None),
        Momenta.of([tuned["alpha"]], [max(tuned["beta"], SMALLEST_BETA)]),
        held_out.seed,
        lambda momenta: problems.score(curves(momenta)),
        fitting=fitting,
    )
    result = LinearReferencesResult(tuned, list(references.values()))
    files.write_result(folder / LINEAR, result)
    return result
