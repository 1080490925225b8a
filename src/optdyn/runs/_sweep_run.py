"""Trainings over tasks, cells, sizes, seeds and learning rates, in one Parquet dataset.

Each file of the folder ``sweep`` holds the trainings of one chunk: those that
share a task, a cell, a size and a seed, and so one compiled program.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optdyn.distributed._engines import Engine, LocalEngine, Work
from optdyn.errors import UserError, require_positive_int
from optdyn.meta_training._trainer import MetaTraining
from optdyn.optimizers._componentwise_rnn import Architecture
from optdyn.runs._plain import convert, result_plain
from optdyn.runs._progress import progress
from optdyn.runs._run_folder import RunFolder, folder_name
from optdyn.runs._store import read_table, remove, table_bytes, write_bytes
from optdyn.search._learning_rate import make_trainer, make_validator
from optdyn.tasks import Task, describe_task, task_from

if TYPE_CHECKING:
    from jax.sharding import Mesh

SWEEP = "sweep"


@dataclasses.dataclass(frozen=True)
class SweepRow:
    """One training, and the ``meta_objective`` that it reached on validation problems.

    Infinite where it is not finite.
    """

    task: str
    cell: str
    units: int
    seed: int
    learning_rate: float
    meta_objective: float

    def axes(self) -> tuple[str, str, int, int, float]:
        """Which training it was."""
        return self.task, self.cell, self.units, self.seed, self.learning_rate


@dataclasses.dataclass(frozen=True)
class Base:
    """A task of a sweep, and all of its trainings that the sweep does not vary."""

    task: Task
    architecture: Architecture
    protocol: MetaTraining


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Trainings that share one compiled program; each rate of ``learning_rates`` is one."""

    task: str
    task_options: dict[str, Any]
    architecture: Architecture
    protocol: MetaTraining
    seed: int
    learning_rates: tuple[float, ...]

    def row(self, learning_rate: float, meta_objective: float = math.nan) -> SweepRow:
        """The row of one of its trainings."""
        cell, units = self.architecture.cell_name, self.architecture.units
        return SweepRow(self.task, cell, units, self.seed, learning_rate, meta_objective)


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Every combination of these, each judged on ``num_problems`` validation problems."""

    bases: tuple[Base, ...]
    cells: tuple[Any, ...]
    units: tuple[int, ...]
    seeds: tuple[int, ...]
    learning_rates: tuple[float, ...]
    num_problems: int = 64

    def __post_init__(self) -> None:
        require_positive_int("num_problems", self.num_problems)
        for field in dataclasses.fields(self):
            if getattr(self, field.name) == ():
                raise UserError(f"{field.name}: none is given (at least one)")

    def common_batch(self) -> int:
        """A number of devices that divides it divides every training's batch."""
        return math.gcd(*(base.protocol.batch_size for base in self.bases))

    def chunks(self, known: Iterable[SweepRow] = ()) -> list[Chunk]:
        """The trainings that are not among the rows ``known``."""
        done = {row.axes() for row in known}
        found = []
        axes = dict.fromkeys(itertools.product(self.cells, self.units, self.seeds))
        for base, (cell, units, seed) in itertools.product(self.bases, axes):
            described = describe_task(base.task)
            architecture = dataclasses.replace(base.architecture, cell=cell, units=units)
            whole = Chunk(
                task=described.name,
                task_options=described.options,
                architecture=architecture,
                protocol=base.protocol,
                seed=seed,
                learning_rates=tuple(dict.fromkeys(self.learning_rates)),
            )
            rates = tuple(r for r in whole.learning_rates if whole.row(r).axes() not in done)
            if rates:
                found.append(dataclasses.replace(whole, learning_rates=rates))
        return found


def run_sweep(
    run: RunFolder, sweep: Sweep, *, engine: Engine = LocalEngine(), mesh: Mesh | None = None
) -> list[SweepRow]:
    """Do the trainings that the folder lacks; returns all rows that the sweep asks for.

    ``engine`` does the chunks; ``mesh`` is for those done in this process. An engine on other
    machines makes a task anew from its description, so it must be importable there.
    Raises `UserError` when the folder holds trainings of another length or batch.
    """
    for base in sweep.bases:
        protocol = {n: v for n, v in vars(base.protocol).items() if n != "learning_rate"}
        run.settle_work(
            SWEEP,
            base.task,
            {
                "encoding": base.architecture.encoding,
                "output_scale": base.architecture.output_scale,
                "protocol": protocol,
                "num_problems": sweep.num_problems,
            },
        )
    folder = run.path / SWEEP
    chunks = sweep.chunks(read_rows(folder))
    tasks = {describe_task(base.task).name: base.task for base in sweep.bases}
    work = Work(
        here=lambda: (
            lambda chunk: _trainings(tasks[chunk["task"]], _chunk(chunk), sweep.num_problems, mesh)
        ),
        maker=f"{__name__}:{trainings_of.__name__}",
        settings={"num_problems": sweep.num_problems},
    )
    total = sum(len(chunk.learning_rates) for chunk in chunks)
    done = 0
    with progress("sweep", total) as advance:
        plain = [result_plain(chunk) for chunk in chunks]
        for chunk, objectives in zip(chunks, engine.map(work, plain), strict=True):
            pairs = zip(chunk.learning_rates, objectives, strict=True)
            rows = [chunk.row(rate, objective) for rate, objective in pairs]
            write_bytes(folder / _file_name(chunk), _parquet(rows))
            done += len(rows)
            advance(done, f"{chunk.task}: lowest meta-objective {min(objectives):.4g}")
    wanted = {chunk.row(rate).axes() for chunk in sweep.chunks() for rate in chunk.learning_rates}
    return [row for row in read_rows(folder) if row.axes() in wanted]


def best_rows(rows: Iterable[SweepRow]) -> list[SweepRow]:
    """The row with the lowest meta-objective for each task."""
    best: dict[str, SweepRow] = {}
    for row in rows:
        if row.task not in best or row.meta_objective < best[row.task].meta_objective:
            best[row.task] = row
    return list(best.values())


def trainings_of(*, num_problems: int) -> Callable[[dict[str, Any]], list[float]]:
    """The function that does a chunk's trainings on another machine."""

    def trainings(plain: dict[str, Any]) -> list[float]:
        chunk = _chunk(plain)
        task = task_from(chunk.task, **chunk.task_options)
        return _trainings(task, chunk, num_problems, None)

    return trainings


def _chunk(plain: dict[str, Any]) -> Chunk:
    return convert(plain, Chunk, "chunk of a sweep")


def _trainings(task: Task, chunk: Chunk, num_problems: int, mesh: Mesh | None) -> list[float]:
    """The meta-objective that each learning rate of a chunk reaches."""
    protocol = chunk.protocol
    trained = make_trainer(task, chunk.architecture, protocol, chunk.seed, mesh)
    validate = make_validator(task, protocol, chunk.seed, num_problems)
    return [validate(trained(rate, protocol.num_meta_steps)) for rate in chunk.learning_rates]


def read_rows(folder: Path) -> list[SweepRow]:
    """All rows in the dataset ``folder``; a damaged file is removed, and a line says so."""
    rows = []
    for path in sorted(folder.glob("*.parquet")):
        try:
            table, _ = read_table(path, dict)
            rows += convert(table.to_pylist(), list[SweepRow], str(path))
        except UserError as error:
            print(f"doing trainings again: {error}", flush=True)
            remove(path)
    return rows


def _file_name(chunk: Chunk) -> str:
    digest = hashlib.sha256(json.dumps(result_plain(chunk), sort_keys=True).encode()).hexdigest()
    names = map(folder_name, (chunk.task, chunk.architecture.cell_name))
    return f"{'-'.join(names)}-{chunk.architecture.units}-{chunk.seed}-{digest[:8]}.parquet"


def _parquet(rows: list[SweepRow]) -> bytes:
    import pyarrow

    schema = pyarrow.schema(
        [
            ("task", pyarrow.string()),
            ("cell", pyarrow.string()),
            ("units", pyarrow.int32()),
            ("seed", pyarrow.int64()),
            ("learning_rate", pyarrow.float64()),
            ("meta_objective", pyarrow.float64()),
        ]
    )
    table = pyarrow.Table.from_pylist([dataclasses.asdict(row) for row in rows], schema=schema)
    return table_bytes(table, {})
