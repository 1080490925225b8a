"""The meta learning rate's random search in a run folder: resumable row by row."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from optdyn.errors import UserError
from optdyn.experiments.files import read_signed_json, write_signed_json
from optdyn.experiments.progress import progress
from optdyn.experiments.run_folder import RunFolder
from optdyn.meta_training.search import LearningRateSearch, Row, search_learning_rate
from optdyn.meta_training.trainer import MetaTraining
from optdyn.optimizers.componentwise_rnn import Architecture
from optdyn.tasks import make_task

if TYPE_CHECKING:
    from jax.sharding import Mesh

ROWS = "learning_rate_search.json"
FIELDS = {"learning_rate", "num_meta_steps", "seed", "meta_objective"}


def search(
    run: RunFolder,
    task_name: str,
    task_options: dict[str, Any],
    architecture: Architecture,
    protocol: MetaTraining,
    seed: int,
    what: LearningRateSearch,
    *,
    mesh: Mesh | None = None,
) -> list[Row]:
    """`search_learning_rate` with its rows kept in the task's ``learning_rate_search.json``.

    Goes on after the last row of an interrupted search. Raises `UserError` for
    settings that differ from the folder's.
    """
    task = make_task(task_name, **task_options)
    settings = {
        "task_options": task_options,
        "architecture": architecture,
        "protocol": {**vars(protocol), "learning_rate": None},
        "seed": seed,
        "search": what,
    }
    run.settle(f"search-lr/{task_name}", settings)
    path = run.task_folder(task_name) / ROWS
    rows = load_rows(path)
    total = what.num_trainings(protocol)
    with progress(f"learning rates for {task_name}", total, len(rows)) as advance:

        def keep(row: Row) -> None:
            rows.append(row)
            write_signed_json(path, {"rows": rows})
            objective = f"{row['meta_objective']:.4g}"
            advance(len(rows), f"learning rate {row['learning_rate']:.3g}: {objective}")

        return search_learning_rate(
            task, architecture, protocol, seed, what, mesh=mesh, done=list(rows), on_row=keep
        )


def load_rows(path: Path) -> list[Row]:
    """The rows found so far; none, with a note, where the file is damaged."""
    if not path.exists():
        return []
    try:
        rows = read_signed_json(path).get("rows")
        if not isinstance(rows, list):
            raise UserError(f"{path}: not a search's rows")
        return [_row(row, path) for row in rows]
    except UserError as error:
        print(f"starting the search over: {error}", flush=True)
        return []


def _row(row: Any, path: Path) -> Row:
    """A stored row, its null (an objective that was not finite) infinite again."""
    if not isinstance(row, dict) or row.keys() != FIELDS:
        raise UserError(f"{path}: not a search's rows")
    if row["meta_objective"] is None:
        row["meta_objective"] = float("inf")
    for name, value in row.items():
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise UserError(f"{path}: {name}: {value!r} is not a number")
    return row
