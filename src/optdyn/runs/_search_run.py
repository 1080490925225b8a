"""Trainings over meta learning rates in a run folder: a search, and sweeps over much else.

A search has one file of rows. A sweep is a Parquet dataset in the folder ``sweep``, each file
of which holds the trainings of one chunk: those that share a task, a cell, a size and a seed,
and so one compiled program.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from optdyn.distributed._engines import Engine, LocalEngine, Work
from optdyn.errors import UserError, require_positive_int
from optdyn.meta_training._trainer import MetaTraining
from optdyn.optimizers._componentwise_rnn import Architecture
from optdyn.runs import _store as files
from optdyn.runs._plain import convert, result_plain
from optdyn.runs._progress import progress
from optdyn.runs._run_folder import RunFolder, folder_name
from optdyn.search._learning_rate import (
    Journal,
    LearningRateSearch,
    Row,
    make_trainer,
    make_validator,
    search_learning_rate,
)
from optdyn.tasks import Task, describe_task, task_from

SEARCHES = "searches"
SWEEP = "sweep"


@dataclasses.dataclass(frozen=True)
class SearchInputs:
    """What a search of the meta learning rate depends on.

    ``protocol``: the fields of a `MetaTraining`, its learning rate null.
    """

    task: str
    task_options: dict[str, Any]
    architecture: Architecture
    protocol: dict[str, Any]
    seed: int
    search: LearningRateSearch


@dataclasses.dataclass(frozen=True)
class SearchResult:
    """``searches/*.json``: the trainings of a search of the meta learning rate so far."""

    settings: SearchInputs
    rows: list[Row]


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
    found = files.read_if_sound(path, SearchResult, "starting the search over")
    rows = [] if found is None else found.rows
    lengths = what.training_lengths(protocol)
    before = sum(lengths[: len(rows)])
    with progress(f"learning rates for {described.name}", sum(lengths), before) as advance:

        def save(row: Row) -> None:
            rows.append(row)
            files.write_result(path, SearchResult(inputs, rows))
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
    cell = folder_name(architecture.cell_name)
    name = f"{cell}-{architecture.units}-{_digest(inputs)}.json"
    return task_folder / SEARCHES / name


def read_searches(task_folder: Path) -> list[SearchResult]:
    """All searches of a task, in the order of their files' names; errors as in `read_result`."""
    paths = sorted((task_folder / SEARCHES).glob("*.json"))
    return [files.read_result(path, SearchResult) for path in paths]


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
        settings = {
            "encoding": base.architecture.encoding,
            "output_scale": base.architecture.output_scale,
            "protocol": protocol,
            "num_problems": sweep.num_problems,
        }
        run.settle_work(SWEEP, base.task, settings)
    folder = run.path / SWEEP
    chunks = sweep.chunks(read_rows(folder))
    tasks = {describe_task(base.task).name: base.task for base in sweep.bases}
    work = Work(
        here=lambda: trainings_of(num_problems=sweep.num_problems, tasks=tasks, mesh=mesh),
        maker=f"{__name__}:{trainings_of.__name__}",
        settings={"num_problems": sweep.num_problems},
    )
    done, total = 0, sum(len(chunk.learning_rates) for chunk in chunks)
    with progress("sweep", total) as advance:
        plain = [result_plain(chunk) for chunk in chunks]
        for chunk, objectives in zip(chunks, engine.map(work, plain), strict=True):
            pairs = zip(chunk.learning_rates, objectives, strict=True)
            rows = [chunk.row(rate, objective) for rate, objective in pairs]
            files.write_bytes(folder / _file_name(chunk), _parquet(rows))
            done += len(rows)
            advance(done, f"{chunk.task}: lowest meta-objective {min(objectives):.4g}")
    wanted = {chunk.row(rate).axes() for chunk in sweep.chunks() for rate in chunk.learning_rates}
    return [row for row in read_rows(folder) if row.axes() in wanted]


def best_rows(rows: Iterable[SweepRow]) -> list[SweepRow]:
    """The row with the lowest meta-objective for each task."""
    by_task: dict[str, list[SweepRow]] = {}
    for row in rows:
        by_task.setdefault(row.task, []).append(row)
    return [min(own, key=lambda row: row.meta_objective) for own in by_task.values()]


def trainings_of(
    *, num_problems: int, tasks: Mapping[str, Task] | None = None, mesh: Mesh | None = None
) -> Callable[[dict[str, Any]], list[float]]:
    """A function from a chunk, as JSON holds it, to what each of its learning rates reaches.

    On another machine, where ``tasks`` are not at hand, a task is made from its description.
    """

    def trainings(plain: dict[str, Any]) -> list[float]:
        chunk = convert(plain, Chunk, "chunk of a sweep")
        task = tasks[chunk.task] if tasks else task_from(chunk.task, **chunk.task_options)
        protocol = chunk.protocol
        trained = make_trainer(task, chunk.architecture, protocol, chunk.seed, mesh)
        validate = make_validator(task, chunk.architecture, protocol, chunk.seed, num_problems)
        return [validate(trained(rate, protocol.num_meta_steps)) for rate in chunk.learning_rates]

    return trainings


def read_rows(folder: Path) -> list[SweepRow]:
    """All rows in the dataset ``folder``; a damaged file is removed, and a line says so."""
    rows = []
    for path in sorted(folder.glob("*.parquet")):
        try:
            table, _ = files.read_table(path, dict)
            rows += convert(table.to_pylist(), list[SweepRow], str(path))
        except UserError as error:
            print(f"doing trainings again: {error}", flush=True)
            files.remove(path)
    return rows


def _file_name(chunk: Chunk) -> str:
    names = map(folder_name, (chunk.task, chunk.architecture.cell_name))
    numbers = f"{chunk.architecture.units}-{chunk.seed}-{_digest(chunk)}"
    return f"{'-'.join(names)}-{numbers}.parquet"


def _digest(value: Any) -> str:
    text = json.dumps(result_plain(value), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _parquet(rows: list[SweepRow]) -> bytes:
    import pyarrow

    text, number = pyarrow.string(), pyarrow.float64()
    kinds = {"task": text, "cell": text, "units": pyarrow.int32(), "seed": pyarrow.int64()}
    schema = pyarrow.schema({**kinds, "learning_rate": number, "meta_objective": number})
    table = pyarrow.Table.from_pylist([dataclasses.asdict(row) for row in rows], schema=schema)
    return files.table_bytes(table, {})
