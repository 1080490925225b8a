"""The explorer's part of the report: its numbers, and the scripts that the page may run."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import zlib
from html import unescape
from pathlib import Path

import numpy as np
import pytest

from optdyn.runs import AnalysisResult, load_tables, open_run, read_task_result
from optdyn.search import best
from optdyn.study._results import read_results
from optdyn.study.page._explorer_data import STAGES_SHOWN, ZERO, as_script, explorer_data
from optdyn.study.page._scripts import EXPLORER, OWN, UNPACK, asset

TASKS = ["linear_regression", "rosenbrock", "two_moons"]


def shown(run: Path) -> dict[str, dict]:
    with open_run(run) as opened:
        found = explorer_data([read_results(opened, task) for task in TASKS])
    return {task["name"]: task for task in found["tasks"]}


@pytest.fixture
def partial(tiny_study: Path, tmp_path: Path) -> Path:
    """A run of one task whose folder a test may take things out of."""
    run = tmp_path / "run"
    shutil.copytree(tiny_study / "rosenbrock", run / "rosenbrock")
    shutil.copy(tiny_study / "config.json", run)
    return run


def test_every_part_of_a_study_is_there(tiny_study: Path) -> None:
    tasks = shown(tiny_study)
    assert list(tasks) == TASKS[:2]  # nothing of two_moons is in this study
    for name, task in tasks.items():
        assert task["missing"] == {}
        analysis = read_task_result(tiny_study / name / "analysis.json", AnalysisResult)
        stages = task["analysis"]["stages"]
        rows = analysis.checkpoints
        assert [stage["meta_step"] for stage in stages] == [row.meta_step for row in rows]
        assert len(stages) <= STAGES_SHOWN + 1
        for stage, row in zip(stages, rows, strict=True):
            start = [row.modes.start.real, row.modes.start.imag]
            np.testing.assert_allclose(stage["start"], start, rtol=1e-6, atol=1e-30)
            np.testing.assert_allclose(stage["full"], row.curves.full, rtol=1e-3)
            assert len(stage["one_mode"]) == 9
        assert task["keep"]["num_steps"] == 8
        assert len(task["keep"]["problems"]["start"]) == 2
        path = task["mechanisms"]["path"]
        assert np.shape(path["update"]) == (len(path["step"]), len(path["gradient"]))
        assert path["step"][-1] is None


def test_searches_hold_every_combination(tiny_study: Path) -> None:
    (momentum,) = (
        search
        for search in shown(tiny_study)["rosenbrock"]["searches"]
        if search["optimizer"] == "momentum"
    )
    table = load_tables(tiny_study / "rosenbrock")["momentum"]
    for (name, column), places in zip(
        table.hyperparameters().items(), momentum["index"], strict=True
    ):
        values = [momentum["axes"][name][ord(character) - ZERO] for character in places]
        np.testing.assert_allclose(values, column, rtol=1e-6)
    told = [np.inf if value is None else value for value in momentum["score"]]
    np.testing.assert_allclose(told, table.scores, rtol=1e-3)
    assert momentum["best"] == best(table).row


def test_a_missing_part_says_why(partial: Path) -> None:
    (partial / "rosenbrock" / "analysis.json").unlink()
    (partial / "rosenbrock" / "mechanisms.json").write_text("{")
    shutil.rmtree(partial / "rosenbrock" / "tuning")
    task = shown(partial)["rosenbrock"]
    assert task["analysis"] is task["mechanisms"] is task["searches"] is None
    assert "has not been analysed" in task["missing"]["analysis"]
    assert "mechanisms.json: damaged" in task["missing"]["mechanisms"]
    assert "no baseline has been tuned" in task["missing"]["searches"]
    assert all("\n" not in reason for reason in task["missing"].values())
    (partial / "rosenbrock" / "explorer.json").unlink()
    assert shown(partial) == {}


def test_no_text_in_the_data_ends_its_element() -> None:
    told = as_script({"a": "</script><!-- <b>"})
    assert "<" not in told
    assert json.loads(told) == {"a": "</script><!-- <b>"}


def test_the_page_runs_its_own_scripts_and_no_others(tiny_study: Path) -> None:
    html = (tiny_study / "report.html").read_text(encoding="utf-8")
    scripts = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    assert scripts == [asset(name) for name in (OWN, UNPACK)]
    packed = re.findall(r'<script type="text/plain" data-packed>(.*?)</script>', html)
    scripts += [zlib.decompress(base64.b64decode(text)).decode() for text in packed]
    assert scripts[3:] == [asset(name) for name in EXPLORER]
    assert len(scripts[2]) > 2 * len(packed[0])
    digests = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts]
    (escaped,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', html)
    policy = unescape(escaped)
    (allowed,) = re.findall(r"script-src ([^;]*);", policy)
    assert allowed.split() == [f"'sha256-{digest}'" for digest in digests]
    assert policy.startswith("default-src 'none'")
    assert sum("plotly.js v" in script[:100] for script in scripts) == 1
    assert "</script" not in "".join(map(asset, EXPLORER))
