"""The meta learning rate's random search in a run folder: resumable row by row."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from optdyn.meta_training._trainer import MetaTraining
from optdyn.optimizers._componentwise_rnn import Architecture
from optdyn.runs._plain import result_plain
from optdyn.runs._progress import progress
from optdyn.runs._results import SearchInputs, SearchResult
from optdyn.runs._run_folder import RunFolder, folder_name
from optdyn.runs._store import read_if_sound, read_result, write_result
from optdyn.search._learning_rate import Journal, LearningRateSearch, Row, search_learning_rate
from optdyn.tasks import Task, describe_task

if TYPE_CHECKING:
    from jax.sharding import Mesh

SEARCHES = "searches"


def search(
    run: RunFolder,
    task: Task,
    architecture: Architecture,
    protocol: MetaTraining,
    seed: int,
    what: LearningRateSearch,
    *,
    mesh: Mesh | None = None,
) -> list[Row]:
    """`search_learning_rate`, with its rows in a file of the task's ``searches/``.

    A search with other settings (another architecture, say) has another file; one
    with the same goes on after its last row.
    """
    described = describe_task(task)
    inputs = SearchInputs(
        task=described.name,
        task_options=described.options,
        architecture=architecture,
        protocol={**vars(protocol), "learning_rate": None},
        seed=seed,
        search=what,
    )
    path = search_path(run.task_folder(task), inputs)
    run.settle(f"search-lr/{described.name}/{path.stem}", inputs)
    found = read_if_sound(path, read_search, "starting the search over")
    rows = [] if found is None else found.rows
    lengths = what.training_lengths(protocol)
    before = sum(lengths[: len(rows)])
    with progress(f"learning rates for {described.name}", sum(lengths), before) as advance:

        def save(row: Row) -> None:
            rows.append(row)
            write_result(path, SearchResult(inputs, rows))
            show(row.learning_rate, 0, f"meta-objective {row.meta_objective:.4g}")

        def show(learning_rate: float, meta_step: int, words: str = "training") -> None:
            training = f"{len(rows)} of {len(lengths)} trained"
            done = sum(lengths[: len(rows)]) + meta_step
            advance(done, f"{training}, learning rate {learning_rate:.3g}: {words}")

        return search_learning_rate(
            task, architecture, protocol, seed, what, mesh=mesh,
            journal=Journal(list(rows), save, show),
        )  # fmt: skip


def search_path(task_folder: Path, inputs: SearchInputs) -> Path:
    """The file of the search with these inputs."""
    architecture = inputs.architecture
    text = json.dumps(result_plain(inputs), sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    name = f"{folder_name(architecture.cell_name)}-{architecture.units}-{digest}.json"
    return task_folder / SEARCHES / name


def read_search(path: Path) -> SearchResult:
    """The search in ``path``; raises `UserError` for a damaged file."""
    return read_result(path, SearchResult)


def read_searches(task_folder: Path) -> list[SearchResult]:
    """All searches of a task, in the order of their files' names."""
    return [read_search(path) for path in sorted((task_folder / SEARCHES).glob("*.json"))]
