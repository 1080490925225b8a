"""How long each part of a study took, in its run folder."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

from optdyn.runs._run_folder import RunFolder
from optdyn.runs._store import read_if_sound, read_json, write_json

TIMINGS = "timings.json"
Timings = dict[str, dict[str, float]]
"""What the file holds: the seconds of each part of a study, by task."""


def read_timings(run: Path) -> Timings:
    """The seconds of each part, by task. Raises `UserError` for a missing or damaged file."""
    return read_json(run / TIMINGS, Timings)


@contextlib.contextmanager
def timed(run: RunFolder, task: str, part: str) -> Iterator[None]:
    """Add the block's seconds to ``timings.json``, if it did anything in the run folder."""
    before, started = _snapshot(run.path), time.monotonic()
    yield
    if _snapshot(run.path) == before:
        return
    path, otherwise = run.path / TIMINGS, "starting the timings over"
    timings = read_if_sound(path, Timings, otherwise, read_json) or {}
    parts = timings.setdefault(task, {})
    parts[part] = round(parts.get(part, 0.0) + time.monotonic() - started, 1)
    write_json(path, timings)


def _snapshot(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
