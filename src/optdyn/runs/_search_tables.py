"""Search tables as Parquet files: one row a combination, settings in the metadata."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from optdyn.errors import UserError
from optdyn.runs._store import read_table, table_bytes, write_bytes
from optdyn.search import Grid, SearchSettings, SearchTable
from optdyn.search._search_table import Round


@dataclasses.dataclass(frozen=True)
class Content:
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
    content = Content(table.settings, table.grid, table.earlier)
    write_bytes(path, table_bytes(pyarrow.table(columns), content))


def load_table(path: str | Path) -> SearchTable:
    """The search table in a file of `save_table`.

    Raises `UserError`, naming the first fault, for a file that is missing, damaged, or not
    such a table.
    """
    path = Path(path)
    try:
        table, content = read_table(path, Content)
        grid = content.grid
        names = [f"{name}_index" for name in grid.names]
        missing = {*names, "score", "rescore"} - {*table.column_names}
        if missing:
            raise UserError(f"{path}: column {min(missing)} is missing")
        columns = {name: table.column(name).to_numpy() for name in table.column_names}
    except UserError as error:
        raise UserError(f"tuning table {error}") from None
    return SearchTable(
        settings=content.settings,
        grid=grid,
        indices=np.stack([columns[name] for name in names], axis=1),
        scores=columns["score"],
        rescores=columns["rescore"],
        earlier=content.earlier,
    )
