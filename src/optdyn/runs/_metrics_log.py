"""A log of one JSON object a line that survives being killed and resumed."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from pathlib import Path

from optdyn.errors import UserError
from optdyn.runs import _store as files
from optdyn.runs._plain import parse


@dataclasses.dataclass(frozen=True)
class TrainingRow:
    """What one meta-step reported (see `Metrics`), and the seconds it took.

    The numbers are of the optimizer after ``meta_step`` meta-steps.
    """

    meta_step: int
    meta_objective: float
    gradient_norm: float
    exploded: int
    contained: int
    seconds: float


class MetricsLog:
    """Rows appended to ``path``, in increasing order of their ``meta_step``.

    Opened at ``resume_at``, the log holds the rows before that step, each step once. A torn
    last line, damaged rows and rows of steps that will be done again are removed; a line on
    the terminal says how many are missing. The file is rewritten only if that changes it,
    and opened at the first row. Every row is sealed.
    """

    def __init__(self, path: Path, resume_at: int = 0) -> None:
        self._path = path
        self._descriptor: int | None = None
        if not path.exists():
            return
        content = files.read_bytes(path)
        before = [row for row in _rows(content) if row.meta_step < resume_at]
        repaired = b"".join(map(_line, before))
        if len(before) < resume_at:
            print(f"{path}: {resume_at - len(before)} rows are damaged or missing", flush=True)
        if repaired != content:
            files.write_bytes(path, repaired)

    def append(self, row: TrainingRow) -> None:
        """Add a row (a single write, so that a kill tears at most the last line)."""
        with files.refusals(self._path, "write"):
            if self._descriptor is None:
                files.make_folder(self._path.parent)
                flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
                self._descriptor = os.open(self._path, flags, 0o644)
                files.flush_folder(self._path.parent)
            line = _line(row)
            while line:
                line = line[os.write(self._descriptor, line) :]

    def flush(self) -> None:
        """Put every row so far on the disk: done before a checkpoint that counts on them."""
        if self._descriptor is not None:
            with files.refusals(self._path, "write"):
                os.fsync(self._descriptor)

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *_: object) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def read_metrics(path: Path) -> list[TrainingRow]:
    """The intact rows of a log, in order, each step once; damaged lines are left out.

    Raises `UserError` when there is no such file.
    """
    return _rows(files.read_bytes(path))


def _rows(content: bytes) -> list[TrainingRow]:
    rows = {}
    for line in content.split(b"\n"):
        if files.is_sealed(line + b"\n"):
            with contextlib.suppress(UserError):
                row = parse(line, TrainingRow, "row")
                rows[row.meta_step] = row
    return [rows[step] for step in sorted(rows)]


def _line(row: TrainingRow) -> bytes:
    return files.result_bytes(row, files.FEW_DIGITS)
