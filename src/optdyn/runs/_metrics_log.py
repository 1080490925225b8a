"""A log of one JSON object a line that survives being killed and resumed."""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path
from types import TracebackType
from typing import Any

from optdyn.runs._files import (
    cannot,
    flush_folder,
    make_folder,
    parse_json,
    read_bytes,
    to_plain,
    write_bytes,
)

STEP = "meta_step"
CHECKSUM = "crc32"


class MetricsLog:
    """Rows appended to ``path``, in increasing order of their ``meta_step``.

    Opened at ``resume_at``, the log keeps the rows before that step, each step
    once; a torn last line and rows of steps that will be done again go, and rows
    that were damaged, which is told. The file is rewritten only if that changes
    it, and opened at the first row. Every row carries a checksum of itself.
    """

    def __init__(self, path: Path, resume_at: int = 0) -> None:
        self._path = path
        self._descriptor: int | None = None
        if not path.exists():
            return
        content = read_bytes(path)
        kept = [row for row in _rows(content) if row[STEP] < resume_at]
        repaired = b"".join(map(_line, kept))
        if len(kept) < resume_at:
            print(f"{path}: {resume_at - len(kept)} rows are damaged or missing", flush=True)
        if repaired != content:
            write_bytes(path, repaired)

    def append(self, row: dict[str, Any]) -> None:
        """Add a row (a single write, so that a kill tears at most the last line)."""
        try:
            if self._descriptor is None:
                make_folder(self._path.parent)
                flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
                self._descriptor = os.open(self._path, flags, 0o644)
                flush_folder(self._path.parent)
            line = _line(to_plain(row))
            while line:
                line = line[os.write(self._descriptor, line) :]
        except OSError as error:
            raise cannot(self._path, "write", error) from None

    def flush(self) -> None:
        """Put every row so far on the disk: done before a checkpoint that counts on them."""
        if self._descriptor is None:
            return
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            raise cannot(self._path, "write", error) from None

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The intact rows of a log, in order, each step once; damaged lines are passed over.

    Raises `UserError` when there is no such file.
    """
    return _rows(read_bytes(path))


def _rows(content: bytes) -> list[dict[str, Any]]:
    found = [row for line in content.split(b"\n") if (row := _parsed(line)) is not None]
    told = [row.pop(CHECKSUM, None) for row in found]
    if any(told):  # a log from before there were checksums has none at all
        found = [row for row, sum_ in zip(found, told, strict=True) if sum_ == _checksum(row)]
    rows = {row[STEP]: row for row in found}
    return [rows[step] for step in sorted(rows)]


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        row = parse_json(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get(STEP), int) else None


def _checksum(row: dict[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(row).encode()):08x}"


def _line(row: dict[str, Any]) -> bytes:
    return json.dumps({**row, CHECKSUM: _checksum(row)}, allow_nan=False).encode() + b"\n"
