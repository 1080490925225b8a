"""The benchmarks run, at small sizes; what they measure depends on the machine."""

from __future__ import annotations

import json

import pytest
from benchmarks import interactive, paper_scale


def test_a_training_at_paper_scale_is_measured_by_some_meta_steps(
    capsys: pytest.CaptureFixture[str],
) -> None:
    sizes = ["--units", "2", "--batch", "2", "--steps", "2", "--samples", "1"]
    paper_scale.main(["--task", "rosenbrock", *sizes])
    told = json.loads(capsys.readouterr().out)
    minutes = (told["compile_seconds"] + 5000 * told["seconds"]) / 60
    assert told["minutes_of_all_meta_steps"] == pytest.approx(minutes)


def test_an_update_is_measured_beside_adams() -> None:
    row = interactive.update(8, "bfloat16", number=1000)
    assert row["bytes"] == 16
    assert row["extra_bytes"] <= 12
    table = interactive.tables({"analyses": {}, "updates": [row]})
    assert table.splitlines()[-1].startswith("| 8 | bfloat16 | 16 |")
