"""The whole study, end to end, and the same study on weights that ship."""

from __future__ import annotations

import dataclasses
import math
import shutil
from pathlib import Path

import numpy as np
import pytest

from helpers import TINY_RECIPE, TINY_RECIPES, save_unrendered
from optdyn.cli._export import train_command, tune_command
from optdyn.distillation import Kept
from optdyn.errors import UserError
from optdyn.inner_loop import Objective
from optdyn.pretrained import export_task
from optdyn.pretrained._shipped import FOLDER
from optdyn.runs import (
    AnalysisResult,
    DistillationResult,
    EvaluationSummary,
    FittedResult,
    LossesAtSteps,
    RunFolder,
    open_run,
    read_result,
    read_searches,
    read_task_result,
)
from optdyn.runs import _distillation_fit as distillation_fit
from optdyn.runs._checkpoints import analysis_checkpoints, load_optimizer
from optdyn.runs._distillation_fit import FITTED
from optdyn.runs._distillation_run import Judged, _kept_in_words
from optdyn.runs._plain import to_plain
from optdyn.runs._store import write_result
from optdyn.study import (
    SCALES,
    Claim,
    Recipe,
    Study,
    Verdict,
    _stories,
    read_ledger,
    recipe_for,
    reproduce,
)
from optdyn.study._claims import ROWS
from optdyn.study._measures import FITS_SHIPPED
from optdyn.study._recipes import LAPTOP
from optdyn.study._seeds import measure_seeds
from optdyn.study._shipped import place_searches
from optdyn.study._timings import read_timings
from optdyn.tasks import TASKS

OBJECTIVE = Objective()
SHIPPED = dataclasses.replace(TINY_RECIPE, shipped=True)
EVERY_TASK = (
    "training_curve", "loss_curves", "mode_stages", "momentum_stage", "modes_over_training",
    "mechanisms", "mode_tracks", "advantage_kept",
)  # fmt: skip


def run_study(out: Path, *recipes: Recipe, shipping: Path) -> None:
    reproduce(out, Study(recipes, "smoke", shipping=shipping))


def claims_of(run: Path) -> dict[str, Claim]:
    claims = read_ledger(run / "claims.json")
    assert len({claim.id for claim in claims}) == len(claims)
    return {claim.id: claim for claim in claims}


def times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_a_study_judges_every_claim_and_draws_every_figure(tiny_study: Path) -> None:
    claims = claims_of(tiny_study)
    for task in ("linear_regression", "rosenbrock"):
        rows = {claim.row for claim in claims.values() if claim.task == task}
        assert rows == {row.id for row in ROWS if not row.asked_of or task in row.asked_of}
        for baseline in ("momentum", "rmsprop"):
            assert claims[f"{task}.{baseline}_best_is_interior"].measured in (0, 1, 2)
            assert claims[f"{task}.{baseline}_reproduces_from_its_table"].passed
            claim = claims[f"{task}.learned_beats_{baseline}"]
            assert claim.measured is not None or "diverged" in claim.note
            assert claim.origin.startswith("trained and tuned in this run; meta-training: 3")
        for name in EVERY_TASK:
            assert (tiny_study / "figures" / f"{name}_{task}.svg").exists()
        losses = read_result(tiny_study / task / "losses_at_steps.json", LossesAtSteps)
        assert losses.steps.tolist() == [0, 8]
        linear = {"linear_1", "linear_2", "linear_4"} if task == "linear_regression" else set()
        assert set(losses.optimizers) == {"learned", "momentum", "rmsprop"} | linear
        at_start = [optimizer.mean[0] for optimizer in losses.optimizers.values()]
        np.testing.assert_allclose(at_start, at_start[0], rtol=1e-6)
    drawn = {path.stem for path in (tiny_study / "figures").glob("fig*.svg")}
    expected = {"fig02a", "fig02b", "fig08", "fig09", "fig09_paired", "fig10", "fig11"}
    expected |= {"fig07a", "fig07b", "fig07c", "fig07c_rosenbrock"}
    expected |= {f"fig07{x}_linear_regression_final" for x in "ab"}
    analysis = read_task_result(tiny_study / "rosenbrock" / "analysis.json", AnalysisResult)
    two = analysis.momentum_stage != analysis.final
    ends = ("stage", "final") if two else ("stage",)
    expected |= {f"fig07{x}_rosenbrock_{end}" for x in "ab" for end in ends}
    assert drawn == expected


def test_a_task_that_does_not_ship_is_named_and_not_passed(tiny_study: Path) -> None:
    found = [claim for claim in claims_of(tiny_study).values() if claim.task == "two_moons"]
    assert [claim.id for claim in found] == [
        f"two_moons.learned_beats_{baseline}" for baseline in TINY_RECIPE.baselines
    ]
    for claim in found:
        assert claim.measured is None
        assert claim.verdict == Verdict.UNMEASURED
        assert "no trained weights ship" in claim.why


def test_a_finished_study_is_left_untouched(
    tiny_study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = times(tiny_study)
    run_study(tiny_study, *TINY_RECIPES, shipping=tmp_path)
    assert times(tiny_study) == before
    assert "two_moons: left out" in capsys.readouterr().out


def test_a_single_task_that_does_not_ship_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--task: no trained weights ship .* --retrain"):
        run_study(tmp_path / "run", SHIPPED, shipping=tmp_path)
    assert not (tmp_path / "run").exists()


def test_shipped_weights_take_the_place_of_training(
    tiny_study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_stories, "save_figure", save_unrendered)
    shipping, out = tmp_path / "shipping", tmp_path / "run"
    export_task(RunFolder(tiny_study), "rosenbrock", shipping, train_command, tune_command)
    other = dataclasses.replace(TINY_RECIPE.protocol, normalization="none")
    with pytest.raises(UserError, match="trained for another meta-objective"):
        run_study(
            tmp_path / "refused", dataclasses.replace(SHIPPED, protocol=other), shipping=shipping
        )

    run_study(out, SHIPPED, shipping=shipping)
    there, here = (run / "rosenbrock" for run in (tiny_study, out))
    analysis = read_task_result(there / "analysis.json", AnalysisResult)
    shipped = analysis_checkpoints(here / "checkpoints")
    steps = sorted({analysis.momentum_stage, analysis.final})
    assert [int(path.stem.removeprefix("step-")) for path in shipped] == steps
    claims = claims_of(out)
    for claim in claims.values():
        assert "shipped with the package" in claim.origin
        assert "3 units (gru), batch 2, 3 meta-steps" in claim.origin
    assert (here / "evaluation.json").read_bytes() == (there / "evaluation.json").read_bytes()
    assert "shipped with the package" in (out / "report.html").read_text()
    assert FITS_SHIPPED in claims["rosenbrock.distilled_keeps_the_advantage"].note
    found = [
        read_task_result(folder / "distillation.json", DistillationResult)
        for folder in (there, here)
    ]
    assert [each.shipped for each in found] == [False, True]
    for name in ("sizes", "chosen", "without", "learned_without", "command"):
        first, second = (to_plain(getattr(each, name)) for each in found)  # NaN is no number
        assert first == second
    with open_run(out) as run:
        assert set(run.settings()["shipped/rosenbrock"]["files"]) >= {
            "training.jsonl", "tuning/momentum.parquet", "tuning/rmsprop.parquet"
        }  # fmt: skip
        assert "training" not in read_timings(out)["rosenbrock"]
    before = times(out)
    run_study(out, SHIPPED, shipping=shipping)
    assert times(out) == before


def test_readable_optimizers_for_another_task_are_refused(tiny_study: Path, tmp_path: Path) -> None:
    shipping = tmp_path / "shipping"
    run = Path(shutil.copytree(tiny_study, tmp_path / "run"))
    path = run / "rosenbrock" / FITTED
    found = read_result(path, FittedResult)
    protocol = dataclasses.replace(found.inputs.protocol, normalization="none")
    inputs = dataclasses.replace(found.inputs, protocol=protocol)
    write_result(path, dataclasses.replace(found, inputs=inputs))
    export_task(RunFolder(run), "rosenbrock", shipping, train_command, tune_command)
    with pytest.raises(UserError, match="readable optimizers were fitted for another task or meta"):
        run_study(tmp_path / "out", SHIPPED, shipping=shipping)


def test_a_size_is_no_worse_than_the_tuned_baselines_that_it_contains(tiny_study: Path) -> None:
    for task in ("linear_regression", "rosenbrock"):
        sizes = read_result(tiny_study / task / FITTED, FittedResult).sizes
        for size in sizes:
            expected = {"tuned momentum"}
            if "adaptive" in size.values:
                expected |= {"tuned rmsprop"}
            assert {name for name in size.starts if name.startswith("tuned")} == expected
            known = [score for score in size.starts.values() if np.isfinite(score)]
            assert size.validation <= min(known)
        levels = [size.validation for size in sizes]
        assert levels == sorted(levels, reverse=True)


def test_as_good_is_within_the_standard_error_of_the_difference() -> None:
    other = np.ones((4, 3))
    # The differences are 0, 0, 0 and d: their mean is d/4, and so is its standard error.
    nearly = other + np.array([[0.0], [0.0], [0.0], [0.4]])
    assert distillation_fit.as_good(other, other, OBJECTIVE)
    assert distillation_fit.as_good(0.999 * nearly, other, OBJECTIVE)
    assert distillation_fit.as_good(0.9 * other, other, OBJECTIVE)
    assert not distillation_fit.as_good(1.001 * nearly, other, OBJECTIVE)
    diverged = np.where(nearly > 1.0, np.inf, 0.0)
    assert not distillation_fit.as_good(diverged, other, OBJECTIVE)
    assert distillation_fit.as_good(other, diverged, OBJECTIVE)


def test_what_a_size_keeps_of_the_advantage_is_said_in_words() -> None:
    none = Kept(math.nan, math.nan)
    rows = [
        Judged(1.0, 0.1, 0, Kept(0.5, 0.1)),
        Judged(1.0, 0.1, 0, none),
        Judged(math.inf, math.nan, 1, none),
    ]
    words = ["keeps 0.50 of the advantage", "there is no advantage to keep", "diverges"]
    assert [_kept_in_words(row) for row in rows] == words


def test_fitting_goes_on_after_its_last_size(
    tiny_study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(tiny_study / "rosenbrock", tmp_path / "rosenbrock"))
    optimizer, _ = load_optimizer(analysis_checkpoints(folder / "checkpoints")[-1])
    before = (folder / FITTED).read_bytes()
    (folder / FITTED).unlink()
    what = Study((TINY_RECIPE,), "smoke").distilling(TINY_RECIPE)
    monkeypatch.setattr(distillation_fit, "fit", None)
    distillation_fit.fit_sizes(folder, TINY_RECIPE.task, optimizer, what)
    assert (folder / FITTED).read_bytes() == before
    with pytest.raises(TypeError, match="not callable"):  # another seed: every size is fitted anew
        distillation_fit.fit_sizes(
            folder, TINY_RECIPE.task, optimizer, dataclasses.replace(what, seed=1)
        )


@pytest.mark.parametrize("scale", SCALES)
def test_every_task_has_a_recipe(scale: str) -> None:
    assert set(LAPTOP) == set(TASKS)
    for task in LAPTOP:
        recipe = recipe_for(task, scale)
        assert recipe.name == task
        assert recipe.shipped == (scale == "laptop" and task in ("two_moons", "digits"))
    with pytest.raises(UserError, match="--task: unknown value 'foo'"):
        recipe_for("foo", scale)


def test_searches_that_ship_are_placed_in_a_run(tmp_path: Path) -> None:
    with open_run(tmp_path / "run") as run:
        place_searches(run, "rosenbrock", FOLDER)
        place_searches(run, "rosenbrock", FOLDER)
    found = read_searches(tmp_path / "run" / "rosenbrock")
    assert {search.settings.task for search in found} == {"rosenbrock"}
    cells = [search.settings.architecture.cell for search in found]
    assert sorted(cells) == ["gru", "gru", "lstm", "rnn", "ugrnn"]
    assert sum(len(search.rows) for search in found) == 19 + 4 * 8


def test_more_trainings_of_a_recipe_are_measured_once(tiny_study: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_study, tmp_path / "run")
    first = TINY_RECIPE.training_seed
    with open_run(tmp_path / "run", create=False) as run:
        one = measure_seeds(run, TINY_RECIPE, 0, 1)
        two = measure_seeds(run, TINY_RECIPE, 0, 2)
        before = times(tmp_path / "run")
        again = measure_seeds(run, TINY_RECIPE, 0, 2)
        assert str(again) == str(two)  # some of its numbers are NaN
    assert times(tmp_path / "run") == before
    assert [row.seed for row in two.rows] == [first, first + 1]
    assert str(two.rows[0]) == str(one.rows[0])
    evaluated = read_result(tmp_path / "run" / "rosenbrock" / "evaluation.json", EvaluationSummary)
    assert two.rows[0].numbers["meta_objective"] == evaluated.optimizers["learned"].mean
    assert (tmp_path / "run" / "seeds" / str(first + 1) / "rosenbrock" / "checkpoints").is_dir()
