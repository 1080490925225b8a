"""Search tables as Parquet files: one row a combination, settings in the metadata."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from optdyn.errors import UserError
from optdyn.optimizers.search_space import Axis
from optdyn.tuning.grid import Grid
from optdyn.tuning.search_table import (
    Round,
    SearchSettings,
    SearchTable,
    require_same_settings,
)

METADATA_KEY = b"optdyn search"
DIGEST_KEY = b"optdyn digest"


def save_table(path: str | Path, table: SearchTable) -> None:
    """Write a search table, finished or not, as Parquet; the file is whole or not there.

    Columns: each hyperparameter, its ``<name>_index`` on the grid, ``score``,
    ``rescore`` (NaN: none, +inf: diverged), ``round``. Raises `UserError` when
    the folder cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = Path(path)
    columns = _columns(table)
    metadata = json.dumps(_to_json(table), sort_keys=True).encode()
    arrow = pa.table(columns).replace_schema_metadata(
        {METADATA_KEY: metadata, DIGEST_KEY: _digest(columns, metadata)}
    )
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            pq.write_table(arrow, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"tuning table {path}: cannot be written ({error.strerror})") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def load_table(path: str | Path, expected: SearchSettings | None = None) -> SearchTable:
    """Read and check what `save_table` wrote.

    Raises `UserError` for a file that is missing, damaged, not such a table, or
    (where ``expected`` is given) of other settings.
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

    arrow = pq.read_table(pa.BufferReader(content))
    metadata = arrow.schema.metadata[METADATA_KEY]
    stored = {name: arrow.column(name).to_numpy() for name in arrow.column_names}
    if _digest(stored, metadata) != arrow.schema.metadata[DIGEST_KEY]:
        raise ValueError("its contents do not match their digest")
    fields = json.loads(metadata)
    grid = _grid(fields["grid"])
    settings = fields["settings"]
    return SearchTable(
        settings=SearchSettings(**{**settings, "grid": _grid(settings["grid"])}),
        grid=grid,
        indices=np.stack([stored[f"{name}_index"] for name in grid.names], axis=1),
        scores=stored["score"],
        rescores=stored["rescore"],
        earlier=tuple(Round(**{**r, "grid": _grid(r["grid"])}) for r in fields["earlier"]),
    )


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
    return Grid(tuple(Axis(**axis) for axis in fields["axes"]))
