"""The meta learning rate's random search in a run folder: resumable row by row."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optdyn.errors import UserError
from optdyn.meta_training._trainer import MetaTraining
from optdyn.optimizers._componentwise_rnn import Architecture
from optdyn.runs import _forms as forms
from optdyn.runs._files import read_signed_json, to_plain, write_signed_json
from optdyn.runs._forms import require_form
from optdyn.runs._progress import progress
from optdyn.runs._run_folder import RunFolder
from optdyn.search._learning_rate import Journal, LearningRateSearch, Row, search_learning_rate
from optdyn.tasks import make_task

if TYPE_CHECKING:
    from jax.sharding import Mesh

SEARCHED = forms.fields(
    settings=forms.fields(
        architecture=forms.fields(
            cell=forms.text,
            units=forms.count,
            encoding=forms.fields(kind=forms.text, gain=forms.known, scale=forms.known),
            output_scale=forms.known,
        ),
        task_options=forms.table(forms.anything),
        protocol=forms.fields(batch_size=forms.count),
    ),
    rows=forms.rows(
        forms.fields(
            learning_rate=forms.known,
            num_meta_steps=forms.count,
            seed=forms.count,
            meta_objective=forms.number,
        )
    ),
)
"""The form of a kept search."""
SEARCHES = "searches"
Search = dict[str, Any]
"""A kept search: its ``settings`` and the ``rows`` found so far (see `search_learning_rate`)."""


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
    """`search_learning_rate`, its rows kept in a file of the task's ``searches/``.

    A search with other settings (another architecture, say) has another file; one
    with the same goes on after its last row.
    """
    task = make_task(task_name, **task_options)
    settings = to_plain(
        {
            "task": task_name,
            "task_options": task_options,
            "architecture": architecture,
            "protocol": {**vars(protocol), "learning_rate": None},
            "seed": seed,
            "search": what,
        }
    )
    path = search_path(run.task_folder(task_name), settings)
    run.settle(f"search-lr/{task_name}/{path.stem}", settings)
    rows = _found(path)
    lengths = what.training_lengths(protocol)
    before = sum(lengths[: len(rows)])
    with progress(f"learning rates for {task_name}", sum(lengths), before) as advance:

        def keep(row: Row) -> None:
            rows.append(row)
            write_signed_json(path, {"settings": settings, "rows": rows})
            objective = f"meta-objective {row['meta_objective']:.4g}"
            tell(row["learning_rate"], 0, objective)

        def tell(learning_rate: float, meta_step: int, words: str = "training") -> None:
            training = f"{len(rows)} of {len(lengths)} trained"
            done = sum(lengths[: len(rows)]) + meta_step
            advance(done, f"{training}, learning rate {learning_rate:.3g}: {words}")

        return search_learning_rate(
            task, architecture, protocol, seed, what, mesh=mesh,
            journal=Journal(list(rows), keep, tell),
        )  # fmt: skip


def search_path(task_folder: Path, settings: dict[str, Any]) -> Path:
    """Where the search of these settings (as plain values) is kept."""
    architecture = settings["architecture"]
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    name = f"{architecture['cell']}-{architecture['units']}-{digest}.json"
    return task_folder / SEARCHES / name


def read_search(path: Path) -> Search:
    """The search kept at ``path``; raises `UserError` for a damaged file."""
    kept = read_signed_json(path)
    require_form(path, kept, SEARCHED)
    return {"settings": kept["settings"], "rows": [_row(row) for row in kept["rows"]]}


def _row(row: Row) -> Row:
    """A stored row, its null (an objective that was not finite) infinite again."""
    objective = row["meta_objective"]
    return {**row, "meta_objective": float("inf") if objective is None else objective}


def read_searches(task_folder: Path) -> list[Search]:
    """All searches kept for a task, in the order of their names."""
    return [read_search(path) for path in sorted((task_folder / SEARCHES).glob("*.json"))]


def _found(path: Path) -> list[Row]:
    if not path.exists():
        return []
    try:
        return read_search(path)["rows"]
    except UserError as error:
        print(f"starting the search over: {error}", flush=True)
        return []
