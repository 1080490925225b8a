"""Trainings over tasks, cells, sizes, seeds and learning rates, in one Parquet dataset.

Each file of the folder ``sweep`` holds the trainings of one chunk: those that
share a task, a cell, a size and a seed, and so one compiled program.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import itertools
import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optdyn.errors import UserError, require_positive_int
from optdyn.meta_training._trainer import MetaTraining
from optdyn.runs import _forms as forms
from optdyn.runs._files import cannot, read_bytes, write_bytes
from optdyn.runs._forms import require_form
from optdyn.runs._progress import progress
from optdyn.runs._run_folder import RunFolder
from optdyn.search._engines import Engine, LocalEngine, Work
from optdyn.search._learning_rate import make_trainer, make_validator
from optdyn.study._recipes import recipe_for
from optdyn.tasks import make_task

if TYPE_CHECKING:
    from jax.sharding import Mesh

SWEEP = "sweep"
SCALE = "laptop"
"""The recipes from which a sweep takes what it does not vary."""

Row = dict[str, Any]
"""``task``, ``cell``, ``units``, ``seed``, ``learning_rate``; and the ``meta_objective``
reached on validation problems, infinite where it is not finite."""

AXES = ("task", "cell", "units", "seed", "learning_rate")
DIGEST_KEY = b"optdyn digest"
TRAININGS = forms.rows(
    forms.fields(
        **dict.fromkeys(("task", "cell"), forms.text),
        **dict.fromkeys(("units", "seed"), forms.count),
        **dict.fromkeys(("learning_rate", "meta_objective"), forms.known),
    )
)
"""The form of a file's rows."""


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Every combination of these; what is None is as in the task's recipe."""

    tasks: tuple[str, ...]
    cells: tuple[str, ...]
    units: tuple[int, ...]
    seeds: tuple[int, ...]
    learning_rates: tuple[float, ...]
    num_meta_steps: int | None = None
    unroll_length: int | None = None
    batch_size: int | None = None
    num_problems: int = 64

    def __post_init__(self) -> None:
        require_positive_int("num_problems", self.num_problems)
        for name in ("tasks", "cells", "units", "seeds", "learning_rates"):
            if not getattr(self, name):
                raise UserError(f"{name}: none is given (at least one)")

    def protocol_settings(self) -> dict[str, Any]:
        """What all trainings share, and what makes them comparable."""
        return {
            name: getattr(self, name)
            for name in ("num_meta_steps", "unroll_length", "batch_size", "num_problems")
        }

    def common_batch(self) -> int:
        """A number of devices that divides it divides every training's batch."""
        return math.gcd(*(_protocol(task, self.batch_size).batch_size for task in self.tasks))

    def chunks(self, known: Iterable[Row]) -> list[dict[str, Any]]:
        """What is not yet among the rows ``known``: AXES, with the learning rates in a list."""
        done = {tuple(row[name] for name in AXES) for row in known}
        found = []
        for axes in dict.fromkeys(
            itertools.product(self.tasks, self.cells, self.units, self.seeds)
        ):
            rates = [r for r in dict.fromkeys(self.learning_rates) if (*axes, r) not in done]
            if rates:
                found.append({**dict(zip(AXES, axes, strict=False)), "learning_rates": rates})
        return found


def run_sweep(
    run: RunFolder, sweep: Sweep, *, engine: Engine = LocalEngine(), mesh: Mesh | None = None
) -> list[Row]:
    """Do the trainings that the folder lacks; returns all rows that the sweep asks for.

    ``engine`` does the chunks; ``mesh`` is for those done in this process.
    Raises `UserError` when the folder holds trainings of another length or batch.
    """
    settings = sweep.protocol_settings()
    run.settle(SWEEP, settings)
    folder = run.path / SWEEP
    chunks = sweep.chunks(read_rows(folder))
    work = Work(
        here=lambda: trainings_of(**settings, mesh=mesh),
        maker=f"{__name__}:{trainings_of.__name__}",
        settings=settings,
    )
    total = sum(len(chunk["learning_rates"]) for chunk in chunks)
    done = 0
    with progress("sweep", total) as advance:
        for chunk, rows in zip(chunks, engine.map(work, chunks), strict=True):
            write_bytes(folder / _file_name(chunk), _parquet(rows))
            done += len(rows)
            lowest = min(row["meta_objective"] for row in rows)
            advance(done, f"{chunk['task']}: lowest meta-objective {lowest:.4g}")
    asked = sweep.chunks(())
    wanted = {
        (*(chunk[name] for name in AXES[:-1]), rate)
        for chunk in asked
        for rate in chunk["learning_rates"]
    }
    return [row for row in read_rows(folder) if tuple(row[name] for name in AXES) in wanted]


def best_rows(rows: Iterable[Row]) -> list[Row]:
    """The row with the lowest meta-objective for each task."""
    best: dict[str, Row] = {}
    for row in rows:
        known = best.setdefault(row["task"], row)
        if row["meta_objective"] < known["meta_objective"]:
            best[row["task"]] = row
    return list(best.values())


def trainings_of(
    *,
    num_meta_steps: int | None,
    unroll_length: int | None,
    batch_size: int | None,
    num_problems: int,
    mesh: Mesh | None = None,
) -> Callable[[dict[str, Any]], list[Row]]:
    """The function that does a chunk's trainings and gives their rows."""

    def trainings(chunk: dict[str, Any]) -> list[Row]:
        axes = {name: chunk[name] for name in AXES[:-1]}
        recipe = recipe_for(chunk["task"], SCALE)
        task = make_task(chunk["task"], **recipe.task_options)
        architecture = dataclasses.replace(
            recipe.architecture, cell=chunk["cell"], units=chunk["units"]
        )
        protocol = _protocol(chunk["task"], batch_size, num_meta_steps, unroll_length)
        trained = make_trainer(task, architecture, protocol, chunk["seed"], mesh)
        validate = make_validator(task, protocol, chunk["seed"], num_problems)
        return [
            {
                **axes,
                "learning_rate": rate,
                "meta_objective": validate(trained(rate, protocol.num_meta_steps)),
            }
            for rate in chunk["learning_rates"]
        ]

    return trainings


def read_rows(folder: Path) -> list[Row]:
    """All rows in the dataset ``folder``; a damaged file is told of and removed."""
    rows = []
    for path in sorted(folder.glob("*.parquet")):
        content = read_bytes(path)
        try:
            rows += _read(content, path)
        except UserError as error:
            print(f"doing trainings again: {error}", flush=True)
            try:
                path.unlink()
            except OSError as refusal:
                raise cannot(path, "remove", refusal) from None
    return rows


def _protocol(
    task: str,
    batch_size: int | None,
    num_meta_steps: int | None = None,
    unroll_length: int | None = None,
) -> MetaTraining:
    given = {
        "batch_size": batch_size,
        "num_meta_steps": num_meta_steps,
        "unroll_length": unroll_length,
    }
    changed: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    return dataclasses.replace(recipe_for(task, SCALE).protocol, **changed)


def _file_name(chunk: dict[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(chunk, sort_keys=True).encode()).hexdigest()[:8]
    return f"{chunk['task']}-{chunk['cell']}-{chunk['units']}-{chunk['seed']}-{digest}.parquet"


def _schema() -> Any:
    import pyarrow

    return pyarrow.schema(
        [
            ("task", pyarrow.string()),
            ("cell", pyarrow.string()),
            ("units", pyarrow.int32()),
            ("seed", pyarrow.int64()),
            ("learning_rate", pyarrow.float64()),
            ("meta_objective", pyarrow.float64()),
        ]
    )


def _parquet(rows: list[Row]) -> bytes:
    import pyarrow
    import pyarrow.parquet

    buffer = io.BytesIO()
    table = pyarrow.Table.from_pylist(rows, schema=_schema())
    signed = table.replace_schema_metadata({DIGEST_KEY: _digest(table.to_pylist())})
    pyarrow.parquet.write_table(signed, buffer, write_page_checksum=True)
    return buffer.getvalue()


def _digest(rows: list[Row]) -> bytes:
    """A checksum of all that a file tells, as those of its pages leave out its footer."""
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest().encode()


def _read(content: bytes, path: Path) -> list[Row]:
    """The rows in a file's ``content``; raises `UserError` if it is not as it was written."""
    import pyarrow
    import pyarrow.parquet

    try:
        reader = pyarrow.BufferReader(content)
        table = pyarrow.parquet.read_table(reader, page_checksum_verification=True)
    except (OSError, pyarrow.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: not an intact Parquet file ({reason})") from None
    if table.schema != _schema():
        raise UserError(f"{path}: has other columns than a sweep")
    rows = table.to_pylist()
    if (table.schema.metadata or {}).get(DIGEST_KEY) != _digest(rows):
        raise UserError(f"{path}: damaged (its content does not match its SHA-256)")
    require_form(path, rows, TRAININGS)
    return rows
