"""The momentum stage in a run folder: looked for, judged, shipped."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest

from helpers import TINY_RECIPES, TINY_STAGE
from optdyn.errors import UserError
from optdyn.evaluation import EVALUATION_STREAM
from optdyn.mechanisms import MomentumComparison, StageSearch, StageThresholds
from optdyn.pretrained import export_checkpoint, load_pretrained, other_trainings
from optdyn.pretrained._shipped import FOLDER, MANIFEST, read_manifest
from optdyn.runs import (
    AnalysisResult,
    EvaluationSummary,
    LinearReferencesResult,
    StageSearchResult,
    find_stage,
    open_run,
    read_result,
    read_task_result,
)
from optdyn.runs._checkpoints import fingerprint, load_optimizer
from optdyn.runs._stage_run import STAGE, STAGE_SEARCH
from optdyn.runs._tuning_run import LINEAR
from optdyn.study._recipes import LAPTOP

RECIPE = TINY_RECIPES[0]
SHIPPED = FOLDER / "linear_regression"
HELD_OUT = RECIPE.held_out(0, RECIPE.analysis_problems)


@pytest.fixture
def copy(tiny_study: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_study, tmp_path / "copy"))


def test_the_stage_is_of_a_training_of_its_own(tiny_study: Path) -> None:
    folder = tiny_study / "linear_regression"
    found = read_result(folder / STAGE_SEARCH, StageSearchResult)
    _, card = load_optimizer(folder / STAGE)
    assert [row.seed for row in found.rows] == [4, 5]
    assert {row.looked_at for row in found.rows} == {2}
    least = min(found.rows, key=lambda row: row.strain)
    assert card.seed == least.seed
    assert (card.architecture, card.protocol) == (TINY_STAGE.architecture, TINY_STAGE.protocol)
    assert card.meta_step == found.judged.meta_step


def test_the_analysis_judges_it_on_fresh_problems(tiny_study: Path) -> None:
    folder = tiny_study / "linear_regression"
    analysis = read_task_result(folder / "analysis.json", AnalysisResult)
    optimizer, card = load_optimizer(folder / STAGE)
    fresh = MomentumComparison(
        HELD_OUT.problems(RECIPE.task, EVALUATION_STREAM), **analysis.inputs.momentum
    )
    row = fresh.measure(card.meta_step, optimizer)
    assert analysis.stage.meta_objective == pytest.approx(row.meta_objective, rel=1e-6)
    tuned = pytest.approx(fresh.tuned.meta_objective, rel=1e-6)
    assert analysis.judged.tuned.meta_objective == tuned
    strain = StageThresholds().strain(row, fresh.tuned)
    assert analysis.judged.strain == pytest.approx(strain, rel=1e-3, abs=1e-5)
    assert f"seed {card.seed}" in analysis.judged.training
    assert analysis.inputs.stage == fingerprint(optimizer)
    np.testing.assert_allclose(analysis.stage.curves.full, analysis.curves.full.mean, rtol=1e-5)


def test_a_recipe_without_one_is_judged_by_its_own_checkpoint(tiny_study: Path) -> None:
    analysis = read_task_result(tiny_study / "rosenbrock" / "analysis.json", AnalysisResult)
    assert analysis.judged.training == ""
    assert analysis.stage.meta_step == analysis.momentum_stage
    assert analysis.stage.beta == pytest.approx(analysis.row(analysis.momentum_stage).beta)


def test_a_found_stage_is_left_and_other_choices_are_refused(copy: Path) -> None:
    path = copy / "linear_regression" / STAGE
    before = path.stat().st_mtime_ns
    with open_run(copy) as run:
        assert find_stage(run, RECIPE.task, HELD_OUT, TINY_STAGE) == path
        assert path.stat().st_mtime_ns == before
        other = dataclasses.replace(TINY_STAGE, plan=StageSearch(seeds=(1,)))
        with pytest.raises(UserError, match="seeds"):
            find_stage(run, RECIPE.task, HELD_OUT, other)


def test_a_checkpoint_of_another_training_ships_beside_the_task(
    tiny_study: Path, tmp_path: Path
) -> None:
    path = tiny_study / "linear_regression" / STAGE
    for stage in ("momentum", "final"):
        export_checkpoint(
            path, "linear_regression/small", stage, tmp_path, lambda card: f"seed {card.seed}"
        )
    assert other_trainings(tmp_path) == {"linear_regression/small": ("final", "momentum")}
    found = load_pretrained("linear_regression/small", "momentum", tmp_path)
    assert fingerprint(found) == fingerprint(load_optimizer(path)[0])
    manifest = read_manifest(tmp_path / "linear_regression" / "small")
    assert sorted(manifest.files) == ["final.safetensors", "momentum.safetensors"]
    assert {file.command for file in manifest.files.values()} <= {"seed 4", "seed 5"}
    assert (tmp_path / "linear_regression" / "small" / MANIFEST).exists()


def test_the_momentum_stage_that_ships_meets_every_threshold() -> None:
    """On another processor too: it is far enough inside the thresholds."""
    recipe = LAPTOP["linear_regression"]
    problems = recipe.held_out(0, 256).problems(recipe.task, EVALUATION_STREAM)
    tuned = read_result(SHIPPED / STAGE_SEARCH, StageSearchResult).tuned
    fresh = MomentumComparison(problems, tuned.alpha, tuned.beta)
    row = fresh.measure(690, load_pretrained("linear_regression", "momentum"))
    strain = StageThresholds().strain(row, fresh.tuned)
    assert max(strain.values()) < 0.8, strain


def test_the_best_linear_optimizers_are_evaluated_beside_the_baselines(tiny_study: Path) -> None:
    folder = tiny_study / "linear_regression"
    found = read_result(folder / LINEAR, LinearReferencesResult)
    rows = {f"linear_{row.num_modes}": row for row in found.rows}
    assert list(rows) == ["linear_1", "linear_2", "linear_4"]
    scores = read_result(folder / "evaluation.json", EvaluationSummary)
    for name, row in rows.items():
        told = scores.optimizers[name].hyperparameters
        assert len(told) == 2 * row.num_modes
        for mode, (alpha, beta) in enumerate(zip(row.alpha, row.beta, strict=True), start=1):
            assert (told[f"alpha_{mode}"], told[f"beta_{mode}"]) == (alpha, beta)
        problems = RECIPE.held_out(0, RECIPE.test_problems).problems(RECIPE.task, EVALUATION_STREAM)
        again = problems.score(problems.curves(row.as_optax)())
        assert scores.optimizers[name].mean == pytest.approx(again, rel=1e-5)
    assert rows.keys() <= scores.learned_minus.keys()


def test_the_linear_account_is_of_the_stage_and_of_the_end(tiny_study: Path) -> None:
    analysis = read_task_result(tiny_study / "linear_regression" / "analysis.json", AnalysisResult)
    stage = analysis.linear["stage"].scores
    assert stage["full"].mean == pytest.approx(analysis.stage.meta_objective, rel=1e-5)
    assert stage["baseline"].mean == pytest.approx(analysis.judged.tuned.meta_objective, rel=1e-5)
