"""The metrics log loses no kept row and doubles none, wherever it was cut."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optdyn.runs._metrics_log import MetricsLog, TrainingRow, read_metrics


def row(step: int, meta_objective: float) -> TrainingRow:
    return TrainingRow(step, meta_objective, 1.5, exploded=1, contained=0, seconds=0.25)


def rows(steps: range) -> list[TrainingRow]:
    return [row(step, step / 7) for step in steps]


def written(path: Path, steps: range, resume_at: int = 0) -> None:
    with MetricsLog(path, resume_at) as log:
        for each in rows(steps):
            log.append(each)
        log.flush()


def test_resuming_drops_the_steps_that_will_be_done_again(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "training.jsonl"
    written(path, range(10))
    written(path, range(6, 12), resume_at=6)
    assert read_metrics(path) == rows(range(12))


def test_damaged_rows_are_dropped_and_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "training.jsonl"
    written(path, range(6))
    path.write_bytes(
        path.read_bytes().replace(b'"meta_objective": 0.14', b'"meta_objective": 0.15')
    )
    assert [each.meta_step for each in read_metrics(path)] == [0, 2, 3, 4, 5]
    with MetricsLog(path, resume_at=6):
        pass
    assert "1 rows are damaged or missing" in capsys.readouterr().out


def test_opening_a_sound_log_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "training.jsonl"
    written(path, range(5))
    before = path.stat().st_mtime_ns, path.stat().st_ino
    with MetricsLog(path, resume_at=5):
        pass
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == before


def test_numbers_that_are_not_finite_come_back(tmp_path: Path) -> None:
    path = tmp_path / "training.jsonl"
    with MetricsLog(path) as log:
        log.append(row(0, math.nan))
        log.append(row(1, math.inf))
    found = read_metrics(path)
    assert math.isnan(found[0].meta_objective)
    assert found[1] == row(1, math.inf)
    assert "NaN" not in path.read_text()


@settings(max_examples=50)
@given(cut=st.integers(0, 1100), garbage=st.binary(max_size=20))
def test_any_torn_tail_is_repaired(cut: int, garbage: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "training.jsonl"
        written(path, range(8))
        whole = path.read_bytes()
        path.write_bytes(whole[:cut] + garbage.replace(b"\n", b""))
        intact = whole[:cut].count(b"\n")
        resume_at = min(intact, 5)
        written(path, range(resume_at, 8), resume_at=resume_at)
        assert path.read_bytes() == whole
