"""A baseline's random search in a run folder: resumable chunk by chunk."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from optdyn.errors import UserError
from optdyn.inner_loop._objective import Objective
from optdyn.optimizers._baselines import get_baseline
from optdyn.runs import _forms as forms
from optdyn.runs._files import (
    read_signed_json,
    to_plain,
    write_bytes,
    write_signed_json,
)
from optdyn.runs._forms import require_form
from optdyn.runs._progress import progress
from optdyn.runs._run_folder import RunFolder
from optdyn.search import (
    Execution,
    SearchProtocol,
    SearchTable,
    best,
    load_table,
    random_search,
    rerun_best,
    table_bytes,
)
from optdyn.search._engines import Engine, LocalEngine
from optdyn.tasks import make_task, task_from

if TYPE_CHECKING:
    from jax.sharding import Mesh

TUNING = "tuning"
RERUNS = "tuning_reruns.json"
RERUN = forms.fields(
    hyperparameters=forms.table(forms.known), stored=forms.number, rerun=forms.number
)


def table_path(task_folder: Path, baseline: str) -> Path:
    """The file of a baseline's search table in a task's folder."""
    return task_folder / TUNING / f"{baseline}.parquet"


def save_table(path: Path, table: SearchTable) -> None:
    """Write a search table, finished or not, atomically. Raises `UserError`."""
    write_bytes(path, table_bytes(table))


def tune(
    run: RunFolder,
    task_name: str,
    task_options: dict[str, Any],
    baseline_name: str,
    *,
    seed: int,
    num_samples: int = 2500,
    num_problems: int = 32,
    num_steps: int = 200,
    normalization: str = "none",
    rescore_top: int = 50,
    rescore_problems: int = 64,
    stand_in: dict[str, Any] | None = None,
    mesh: Mesh | None = None,
    engine: Engine = LocalEngine(),
) -> SearchTable:
    """`random_search`, with its table kept in the task's ``tuning/<baseline>.parquet``.

    Goes on after the last chunk of an interrupted search; leaves a finished one
    as it is. ``stand_in``: see `SearchProtocol`; ``mesh``, ``engine``: see `random_search`.
    Raises `UserError` for settings that differ from the folder's.
    """
    baseline, task = get_baseline(baseline_name), make_task(task_name, **task_options)
    counts: dict[str, Any] = {
        "num_samples": num_samples,
        "num_problems": num_problems,
        "num_steps": num_steps,
        "rescore_top": rescore_top,
        "rescore_problems": rescore_problems,
    }
    settings = {"task_options": task_options, "seed": seed, "normalization": normalization}
    if stand_in:
        settings["stand_in"] = stand_in
    run.settle(f"tune/{task_name}/{baseline_name}", {**settings, **counts})
    protocol = SearchProtocol(
        objective=Objective(num_steps, normalization),
        num_samples=num_samples,
        num_problems=num_problems,
        rescore_top=rescore_top,
        rescore_problems=rescore_problems,
        stand_in=stand_in or {},
    )
    path = table_path(run.task_folder(task_name), baseline_name)
    with progress(f"tuning {baseline_name} on {task_name}", num_samples) as advance:

        def keep(table: SearchTable) -> None:
            save_table(path, table)
            lowest = np.nanmin(table.scores)
            scored = table.scores.size - table.to_score().size
            advance(scored, f"round {table.round + 1}, lowest meta-objective {lowest:.4g}")

        return random_search(
            baseline,
            task,
            seed=seed,
            protocol=protocol,
            execution=Execution(mesh=mesh, engine=engine),
            on_chunk=keep,
            done=_found(path),
        )


def load_tuned(task_folder: Path, baseline: str) -> SearchTable:
    """A baseline's search table in a task's folder.

    Raises `UserError` where it is missing or damaged, or of another baseline or task.
    """
    path = table_path(task_folder, baseline)
    table = load_table(path)
    found, expected = (table.settings.baseline, table.settings.task), (baseline, task_folder.name)
    if found != expected:
        raise UserError(
            f"tuning table {path}: is of {found[0]} on {found[1]}, not of {baseline} on "
            f"{task_folder.name}"
        )
    return table


def load_tables(task_folder: Path) -> dict[str, SearchTable]:
    """A task folder's search tables by baseline, in the order of their names."""
    paths = sorted((task_folder / TUNING).glob("*.parquet"))
    return {path.stem: load_tuned(task_folder, path.stem) for path in paths}


def rerun_tables(task_folder: Path) -> dict[str, dict[str, float | None]]:
    """Run the best combination of each stored search again (`rerun_best`).

    The task's ``tuning_reruns.json`` keeps, for each baseline, the ``stored`` and
    the ``rerun`` score on the tuning problems (null: not finite); a search whose
    best has been run again already is left alone.
    """
    path = task_folder / RERUNS
    kept = _kept_reruns(path)
    reruns, tables = {}, load_tables(task_folder)
    with progress("running tuned baselines again", len(tables)) as advance:
        for count, (name, table) in enumerate(tables.items(), start=1):
            winner = best(table)
            row = {"hyperparameters": winner.hyperparameters, "stored": winner.tuning_score}
            known = kept.get(name, {})
            if {key: known.get(key) for key in row} != row:
                known = {**row, "rerun": _rerun(table)}
                advance(count, name)
            reruns[name] = to_plain(known)
    if reruns != kept:
        write_signed_json(path, reruns)
    return reruns


def _rerun(table: SearchTable) -> float:
    settings = table.settings
    task = task_from(settings.task, **settings.task_options)
    return rerun_best(table, get_baseline(settings.baseline), task)


def read_reruns(path: Path) -> dict[str, Any]:
    """What `rerun_tables` kept; raises `UserError` for a damaged file, or one of another form."""
    reruns = read_signed_json(path)
    require_form(path, reruns, forms.table(RERUN))
    return reruns


def _kept_reruns(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        return read_reruns(path)
    except UserError as error:
        print(f"running tuned baselines again: {error}", flush=True)
        return {}


def _found(path: Path) -> SearchTable | None:
    if not path.exists():
        return None
    try:
        return load_table(path)
    except UserError as error:
        print(f"starting the search over: {error}", flush=True)
        return None
