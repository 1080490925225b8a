"""Search tables as Parquet files: one row a combination, settings in the metadata."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from optdyn.errors import UserError
from optdyn.optimizers._search_space import Axis
from optdyn.search._grid import Grid
from optdyn.search._search_table import (
    Round,
    SearchSettings,
    SearchTable,
    require_same_settings,
)

if TYPE_CHECKING:
    import pyarrow.parquet as pq

METADATA_KEY = b"optdyn search"
DIGEST_KEY = b"optdyn digest"
MOST_POINTS = 10**6
"""On an axis: more are no grid of ours, but would fill the memory."""
MOST_ROWS = 10**7
"""For the same reason: compressed, a file of a few bytes can hold any number of equal rows."""


def table_bytes(table: SearchTable) -> bytes:
    """A search table, finished or not, as the content of a Parquet file.

    Columns: each hyperparameter, its ``<name>_index`` on the grid, ``score``,
    ``rescore`` (NaN: none, +inf: diverged), ``round``.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = _columns(table)
    metadata = json.dumps(_to_json(table), sort_keys=True).encode()
    arrow = pa.table(columns).replace_schema_metadata(
        {METADATA_KEY: metadata, DIGEST_KEY: _digest(columns, metadata)}
    )
    buffer = io.BytesIO()
    pq.write_table(arrow, buffer)
    return buffer.getvalue()


def load_table(path: str | Path, expected: SearchSettings | None = None) -> SearchTable:
    """Read and check a file of `table_bytes`.

    Sizes and types are checked against the file's settings before any column is
    read. Raises `UserError`, naming the first fault, for a file that is missing,
    damaged, not such a table, or (where ``expected`` is given) of other settings.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"tuning table {path}: no such file")
    try:
        table = _parse(path.read_bytes())
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"tuning table {path}: damaged or not a tuning table ({reason})") from None
    if expected is not None:
        require_same_settings(table.settings, expected)
    return table


def _parse(content: bytes) -> SearchTable:
    """The table in a Parquet file's bytes; raises on anything unexpected."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = pq.ParquetFile(pa.BufferReader(content))
    keys = file.schema_arrow.metadata or {}
    if METADATA_KEY not in keys or DIGEST_KEY not in keys:
        raise ValueError("it has no search settings")
    fields = json.loads(keys[METADATA_KEY])
    grid, settings = _grid(fields["grid"]), fields["settings"]
    settings = SearchSettings(**{**settings, "grid": _grid(settings["grid"])})
    _require_layout(file, grid, settings)
    arrow = file.read()
    for name in arrow.column_names:
        if arrow.column(name).null_count:
            raise ValueError(f"column {name}: has rows without a value")
    stored = {name: arrow.column(name).to_numpy() for name in arrow.column_names}
    if _digest(stored, keys[METADATA_KEY]) != keys[DIGEST_KEY]:
        raise ValueError("its contents do not match their digest")
    for name in ("score", "rescore"):
        if np.any(np.isneginf(stored[name])):
            raise ValueError(f"column {name}: -inf is no score")
    for axis in grid.axes:
        column = stored[f"{axis.name}_index"]
        if np.any((column < 0) | (column >= axis.points)):
            raise ValueError(f"{axis.name}_index: not on the grid's {axis.points} points")
    return SearchTable(
        settings=settings,
        grid=grid,
        indices=np.stack([stored[f"{name}_index"] for name in grid.names], axis=1),
        scores=stored["score"],
        rescores=stored["rescore"],
        earlier=tuple(Round(**{**r, "grid": _grid(r["grid"])}) for r in fields["earlier"]),
    )


def _require_layout(file: pq.ParquetFile, grid: Grid, settings: SearchSettings) -> None:
    """Raise `ValueError` unless columns and rows are those that the settings need."""
    found = {field.name: str(field.type) for field in file.schema_arrow}
    needed = {
        **dict.fromkeys(grid.names, "double"),
        **{f"{name}_index": "int32" for name in grid.names},
        "score": "double",
        "rescore": "double",
        "round": "int32",
    }
    if found != needed:
        names = sorted(name for name in found | needed if found.get(name) != needed.get(name))
        raise ValueError(f"column {names[0]}: {found.get(names[0])}, not {needed.get(names[0])}")
    rows = min(settings.num_samples, grid.size)
    if rows > MOST_ROWS:
        raise ValueError(f"{rows} rows (at most {MOST_ROWS})")
    if file.metadata.num_rows != rows:
        raise ValueError(f"{file.metadata.num_rows} rows, its settings need {rows}")


def _columns(table: SearchTable) -> dict[str, np.ndarray]:
    indices = {
        f"{name}_index": np.ascontiguousarray(column, np.int32)
        for name, column in zip(table.grid.names, table.indices.T, strict=True)
    }
    return {
        **table.hyperparameters(),
        **indices,
        "score": table.scores,
        "rescore": table.rescores,
        "round": np.full(table.scores.size, table.round, np.int32),
    }


def _digest(columns: dict[str, np.ndarray], metadata: bytes) -> bytes:
    """A checksum of everything a table holds, as Parquet keeps none of its own by default."""
    digest = hashlib.sha256(metadata)
    for name, column in columns.items():
        digest.update(f"{name} {column.dtype.str} {column.size}".encode())
        digest.update(np.ascontiguousarray(column).tobytes())
    return digest.hexdigest().encode()


def _to_json(table: SearchTable) -> dict[str, Any]:
    return {
        "settings": dataclasses.asdict(table.settings),
        "grid": dataclasses.asdict(table.grid),
        "earlier": [dataclasses.asdict(finished) for finished in table.earlier],
    }


def _grid(fields: dict[str, Any]) -> Grid:
    axes = tuple(Axis(**axis) for axis in fields["axes"])
    for axis in axes:
        if axis.points > MOST_POINTS:
            raise ValueError(f"axis {axis.name}: {axis.points} points (at most {MOST_POINTS})")
    return Grid(axes)
