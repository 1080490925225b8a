"""The whole study, end to end, and the same study on weights that ship."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers import TINY_RECIPE, TINY_RECIPES
from optdyn.cli._export import train_command, tune_command
from optdyn.errors import UserError
from optdyn.evaluation import MeanAndError
from optdyn.pretrained import _shipped as shipped
from optdyn.pretrained import export_task
from optdyn.pretrained._shipped import MANIFEST, Manifest, read_manifest
from optdyn.runs import _distillation_fit as distillation_fit
from optdyn.runs import _distillation_run as distillation_run
from optdyn.runs._checkpoints import analysis_checkpoints, load_optimizer
from optdyn.runs._distillation_fit import FITTED, Distilling, read_fitted
from optdyn.runs._results import EvaluationSummary, Rerun, Score
from optdyn.runs._run_folder import RunFolder, open_run
from optdyn.runs._search_run import read_searches
from optdyn.runs._store import write_result
from optdyn.study._claims import Claim, comparison_claims, rerun_claims
from optdyn.study._mechanism_claims import FITS_SHIPPED
from optdyn.study._recipes import LAPTOP, SCALES, Recipe, recipe_for
from optdyn.study._shipped import place_searches
from optdyn.tasks import TASKS, Rosenbrock

# The package's attribute of this name is the function.
study = importlib.import_module("optdyn.study._reproduce")

SHIPPED = dataclasses.replace(TINY_RECIPE, shipped=True)
EVERY_TASK = (
    "training_curve", "loss_curves", "mode_stages", "momentum_stage", "modes_over_training",
    "mechanisms", "mode_tracks", "advantage_kept",
)  # fmt: skip


def run_study(
    monkeypatch: pytest.MonkeyPatch, out: Path, task: str, recipes: dict[str, Recipe]
) -> None:
    monkeypatch.setattr(study, "LAPTOP", recipes)
    monkeypatch.setattr(study, "recipe_for", lambda task, scale: recipes[task])
    monkeypatch.setattr(study, "place_searches", lambda run, task: None)
    study.reproduce(out, task, "smoke", 0, False)


def claims_of(run: Path) -> dict[str, dict[str, Any]]:
    claims = json.loads((run / "claims.json").read_text())
    assert len({claim["id"] for claim in claims}) == len(claims)
    return {claim["id"]: claim for claim in claims}


def times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_a_study_judges_every_claim_and_draws_every_figure(tiny_study: Path) -> None:
    claims = claims_of(tiny_study)
    for task in ("linear_regression", "rosenbrock"):
        for baseline in ("momentum", "rmsprop"):
            assert claims[f"{task}.{baseline}_best_is_interior"]["measured"] in (0, 1, 2)
            assert claims[f"{task}.{baseline}_reproduces_from_its_table"]["passed"]
            claim = claims[f"{task}.learned_beats_{baseline}"]
            assert claim["measured"] is not None or "diverged" in claim["note"]
            assert claim["origin"].startswith("trained and tuned in this run; meta-training: 3")
        for name in EVERY_TASK:
            assert (tiny_study / "figures" / f"{name}_{task}.svg").exists()
        told = json.loads((tiny_study / task / "losses_at_steps.json").read_text())
        assert told["steps"] == [0, 8]
        assert set(told["optimizers"]) == {"learned", "momentum", "rmsprop"}
        at_start = [optimizer["mean"][0] for optimizer in told["optimizers"].values()]
        np.testing.assert_allclose(at_start, at_start[0], rtol=1e-6)
    drawn = {path.stem for path in (tiny_study / "figures").glob("fig*.svg")}
    expected = {"fig02a", "fig02b", "fig08", "fig09", "fig09_paired", "fig10", "fig11"}
    expected |= {"fig07a", "fig07b", "fig07c", "fig07c_rosenbrock"}
    expected |= {f"fig07{x}_linear_regression_final" for x in "ab"}
    expected |= {f"fig07{x}_rosenbrock_{stage}" for x in "ab" for stage in ("stage", "final")}
    assert drawn == expected
    assert "loss on the same 4 test problems" in (tiny_study / "report.html").read_text()


def test_a_task_that_does_not_ship_is_told_and_not_passed(tiny_study: Path) -> None:
    found = [claim for claim in claims_of(tiny_study).values() if claim["task"] == "two_moons"]
    assert [claim["id"] for claim in found] == [
        "two_moons.learned_beats_momentum", "two_moons.learned_beats_rmsprop"
    ]  # fmt: skip
    for claim in found:
        assert claim["measured"] is None
        assert claim["passed"] is False
        assert "no trained weights ship" in claim["note"]


def test_a_finished_study_is_left_untouched(
    tiny_study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = times(tiny_study)
    monkeypatch.setattr(study, "shipped_stages", dict)
    run_study(monkeypatch, tiny_study, "all", TINY_RECIPES)
    assert times(tiny_study) == before
    assert "two_moons: left out" in capsys.readouterr().out


def test_a_single_task_that_does_not_ship_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study, "shipped_stages", dict)
    with pytest.raises(UserError, match=r"--task: no trained weights ship .* --retrain"):
        run_study(monkeypatch, tmp_path / "run", "two_moons", TINY_RECIPES)
    assert not (tmp_path / "run").exists()


def test_shipped_weights_take_the_place_of_training(
    tiny_study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipping, out = tmp_path / "shipping", tmp_path / "run"
    export_task(RunFolder(tiny_study), "rosenbrock", shipping, train_command, tune_command)
    monkeypatch.setattr(shipped, "FOLDER", shipping)
    monkeypatch.setattr(study, "train", None)
    monkeypatch.setattr(study, "tune", None)
    monkeypatch.setattr(distillation_run, "fit_sizes", None)
    other = dataclasses.replace(TINY_RECIPE.protocol, normalization="none")
    with pytest.raises(UserError, match="trained for another meta-objective"):
        run_study(
            monkeypatch, tmp_path / "refused", "rosenbrock",
            {"rosenbrock": dataclasses.replace(SHIPPED, protocol=other)},
        )  # fmt: skip

    run_study(monkeypatch, out, "rosenbrock", {"rosenbrock": SHIPPED})
    analysis = json.loads((tiny_study / "rosenbrock" / "analysis.json").read_text())
    kept = analysis_checkpoints(out / "rosenbrock" / "checkpoints")
    steps = sorted({analysis["momentum_stage"], analysis["final"]})
    assert [int(path.stem.removeprefix("step-")) for path in kept] == steps
    claims = claims_of(out)
    for claim in claims.values():
        assert "shipped with the package" in claim["origin"]
        assert "3 units (gru), batch 2, 3 meta-steps" in claim["origin"]
    there = (tiny_study / "rosenbrock" / "evaluation.json").read_text()
    assert (out / "rosenbrock" / "evaluation.json").read_text() == there
    page = (out / "report.html").read_text()
    assert "shipped with the package" in page
    assert FITS_SHIPPED in claims["rosenbrock.distilled_keeps_the_advantage"]["note"]
    told = [
        json.loads((run / "rosenbrock" / "distillation.json").read_text())
        for run in (tiny_study, out)
    ]
    assert [found["shipped"] for found in told] == [False, True]
    for name in ("sizes", "chosen", "without", "learned_without", "command"):
        assert told[0][name] == told[1][name]
    settings = json.loads((out / "config.json").read_text())["settings"]
    assert set(settings["shipped/rosenbrock"]["files"]) >= {
        "training.jsonl", "tuning/momentum.parquet", "tuning/rmsprop.parquet"
    }  # fmt: skip
    before = times(out)
    run_study(monkeypatch, out, "rosenbrock", {"rosenbrock": SHIPPED})
    assert times(out) == before


def test_readable_optimizers_for_another_task_are_refused(
    tiny_study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipping = tmp_path / "shipping"
    export_task(RunFolder(tiny_study), "rosenbrock", shipping, train_command, tune_command)
    path = shipping / "rosenbrock" / FITTED
    found = read_fitted(path)
    protocol = dataclasses.replace(found.inputs.protocol, normalization="none")
    inputs = dataclasses.replace(found.inputs, protocol=protocol)
    write_result(path, dataclasses.replace(found, inputs=inputs))
    content = path.read_bytes()
    manifest = read_manifest(shipping / "rosenbrock")
    listed = shipped.ShippedFile(len(content), hashlib.sha256(content).hexdigest(), "")
    files = {**manifest.files, FITTED: listed}
    write_result(shipping / "rosenbrock" / MANIFEST, Manifest("rosenbrock", files))
    monkeypatch.setattr(shipped, "FOLDER", shipping)
    with pytest.raises(UserError, match="readable optimizers were fitted for another task or meta"):
        run_study(monkeypatch, tmp_path / "run", "rosenbrock", {"rosenbrock": SHIPPED})


def test_a_size_is_no_worse_than_the_tuned_baselines_that_it_contains(tiny_study: Path) -> None:
    for task in ("linear_regression", "rosenbrock"):
        sizes = read_fitted(tiny_study / task / FITTED).sizes
        for size in sizes:
            expected = {"tuned momentum"}
            if "adaptive" in size.values:
                expected |= {"tuned rmsprop"}
            assert {name for name in size.starts if name.startswith("tuned")} == expected
            known = [score for score in size.starts.values() if math.isfinite(score)]
            assert size.validation <= min(known)
        levels = [size.validation for size in sizes]
        assert levels == sorted(levels, reverse=True)


def test_as_good_is_within_the_standard_error_of_the_difference() -> None:
    other = np.ones((4, 3))
    # The differences are 0, 0, 0 and d: their mean is d/4, and so is its standard error.
    nearly = other + np.array([[0.0], [0.0], [0.0], [0.4]])
    assert distillation_fit.as_good(other, other, "none")
    assert distillation_fit.as_good(0.999 * nearly, other, "none")
    assert distillation_fit.as_good(0.9 * other, other, "none")
    assert not distillation_fit.as_good(1.001 * nearly, other, "none")
    diverged = np.where(nearly > 1.0, np.inf, 0.0)
    assert not distillation_fit.as_good(diverged, other, "none")
    assert distillation_fit.as_good(other, diverged, "none")


def test_fitting_goes_on_after_its_last_size(
    tiny_study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = Path(shutil.copytree(tiny_study, tmp_path / "run"))
    folder, task = out / "rosenbrock", TINY_RECIPE
    optimizer, _ = load_optimizer(analysis_checkpoints(folder / "checkpoints")[-1])
    before = (folder / FITTED).read_bytes()
    (folder / FITTED).unlink()
    what = Distilling(task.protocol, task.distillation, 0, json.loads(before)["command"])
    monkeypatch.setattr(distillation_fit, "fit", None)
    distillation_fit.fit_sizes(folder, Rosenbrock(), optimizer, what)
    assert (folder / FITTED).read_bytes() == before
    other = dataclasses.replace(what, seed=1)
    with pytest.raises(TypeError, match="not callable"):  # another seed: nothing is reused
        distillation_fit.fit_sizes(folder, Rosenbrock(), optimizer, other)


@pytest.mark.parametrize("scale", SCALES)
def test_every_task_has_a_recipe(scale: str) -> None:
    assert set(LAPTOP) == set(TASKS)
    for task in LAPTOP:
        recipe = recipe_for(task, scale)
        TASKS[task](**recipe.task_options)
        assert recipe.shipped == (scale == "laptop" and task in ("two_moons", "digits"))
    with pytest.raises(UserError, match="--task: unknown value 'foo'"):
        recipe_for("foo", scale)


def test_what_diverged_fails_its_claims_and_stops_nothing() -> None:
    diverged, finite = MeanAndError(math.inf, math.inf), MeanAndError(0.5, 0.1)

    def lower(learned: MeanAndError[float], momentum: MeanAndError[float]) -> list[Claim]:
        optimizers = {
            "learned": Score(learned.mean, learned.standard_error, 0),
            "momentum": Score(momentum.mean, momentum.standard_error, 0),
        }
        summary = EvaluationSummary(optimizers, {"momentum": diverged})
        return comparison_claims("rosenbrock", summary, {"momentum": 0.25})

    assert [claim.passed for claim in lower(finite, diverged)] == [True, False]
    assert [claim.passed for claim in lower(diverged, finite)] == [False, False]
    (rerun,) = rerun_claims("rosenbrock", {"adam": Rerun({}, 0.5, math.inf)})
    assert not rerun.passed
    assert not rerun_claims("rosenbrock", {"adam": Rerun({}, 1.0, 1.0001)})[0].passed


def test_searches_that_ship_are_placed_in_a_run(tmp_path: Path) -> None:
    with open_run(tmp_path / "run") as run:
        place_searches(run, "rosenbrock")
        place_searches(run, "rosenbrock")
    found = read_searches(tmp_path / "run" / "rosenbrock")
    assert {search.settings.task for search in found} == {"rosenbrock"}
    cells = [search.settings.architecture.cell for search in found]
    assert sorted(cells) == ["gru", "gru", "lstm", "rnn", "ugrnn"]
    assert sum(len(search.rows) for search in found) == 19 + 4 * 8
