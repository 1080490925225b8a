"""A baseline's random search in a run folder: resumable chunk by chunk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from optdyn.errors import UserError
from optdyn.optimizers._baselines import BASELINES
from optdyn.runs._progress import progress
from optdyn.runs._results import Rerun, RerunsResult
from optdyn.runs._run_folder import RunFolder, folder_name
from optdyn.runs._search_tables import load_table, save_table
from optdyn.runs._store import read_if_sound, read_result, write_result
from optdyn.search import (
    Execution,
    SearchProtocol,
    SearchTable,
    best,
    random_search,
    rerun_best,
)

if TYPE_CHECKING:
    from optdyn.optimizers._baselines import Baseline
    from optdyn.tasks import Task

TUNING = "tuning"
RERUNS = "tuning_reruns.json"


def table_path(task_folder: Path, baseline: str) -> Path:
    """The file of a baseline's search table in a task's folder."""
    return task_folder / TUNING / f"{baseline}.parquet"


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

        return random_search(
            baseline,
            task,
            seed=seed,
            protocol=protocol,
            execution=execution,
            on_chunk=save,
            done=read_if_sound(path, load_table, "starting the search over"),
        )


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
    known = read_if_sound(folder / RERUNS, read_reruns, "running tuned baselines again") or {}
    reruns = {}
    tables = {name: table for name, table in load_tables(folder).items() if name in baselines}
    with progress("running tuned baselines again", len(tables)) as advance:
        for count, (name, table) in enumerate(tables.items(), start=1):
            winner = best(table)
            before = known.get(name)
            if before is None or (before.hyperparameters, before.stored) != (
                winner.hyperparameters, winner.tuning_score
            ):  # fmt: skip
                score = rerun_best(table, baselines[name], task)
                before = Rerun(winner.hyperparameters, winner.tuning_score, score)
                advance(count, name)
            reruns[name] = before
    result = RerunsResult(reruns)
    if reruns != known:
        write_result(folder / RERUNS, result)
    return result


def read_reruns(path: Path) -> dict[str, Rerun]:
    """What `rerun_tables` wrote, by baseline; raises `UserError` for a missing or damaged file."""
    return read_result(path, RerunsResult).baselines
