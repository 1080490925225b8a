"""Train, tune, evaluate, analyze, draw, judge, report: one resumable command."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import optdyn
from optdyn.distributed._interrupts import interruptible
from optdyn.errors import UserError
from optdyn.optimizers._baselines import get_baseline
from optdyn.pretrained import shipped_stages
from optdyn.pretrained._shipped import STAGES
from optdyn.runs._analysis_run import analyze_task
from optdyn.runs._distillation_fit import Distilling
from optdyn.runs._distillation_run import distill_task
from optdyn.runs._evaluation_run import evaluate_all
from optdyn.runs._explorer_run import explore_task
from optdyn.runs._mechanisms_run import explain_task
from optdyn.runs._results import TIMINGS, HeldOut, Timings
from optdyn.runs._run_folder import RunFolder, open_run, require_own
from optdyn.runs._store import read_json, write_json
from optdyn.runs._training_run import train
from optdyn.runs._tuning_run import rerun_tables, tune
from optdyn.search import Execution, SearchProtocol, best
from optdyn.study._claims import (
    LEDGER,
    Claim,
    claims_not_measured,
    comparison_claims,
    interior_claims,
    momentum_claims,
    rerun_claims,
)
from optdyn.study._distillation import distill_command
from optdyn.study._mechanism_claims import distillation_claims, mechanism_claims
from optdyn.study._recipes import LAPTOP, Recipe, recipe_for
from optdyn.study._shipped import origin, place_searches, place_shipped
from optdyn.tasks import Task, describe_task, make_task

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from optdyn.study._results import TaskResults

ALL_TASKS = "all"
FIGURES = "figures"
DRAWN = ".drawn.json"
NOTHING_SHIPS = "no trained weights ship with the package"
LEAST_ADVANTAGE = {"linear_regression": {"momentum": 0.25}}
"""How far below a baseline the learned optimizer is asked to be, where that is a finding."""


def reproduce(
    out: Path, task: str, scale: str, seed: int, retrain: bool, mesh: Mesh | None = None
) -> Path:
    """Run the study of ``task`` (or ``"all"``) at ``scale`` in ``out``; returns the report's path.

    Each part goes on where it was left, and a finished study is left untouched.
    ``seed`` settles every random number. ``retrain``: train and tune even where
    the recipe takes what ships with the package. Of all tasks, one whose weights
    do not ship is left out, and its claims say so.

    Raises `UserError` for unknown names, for a folder that holds other settings,
    and when a single task's weights do not ship.
    """
    require_own(out)
    names = list(LAPTOP) if task == ALL_TASKS else [task]
    recipes = {name: recipe_for(name, scale) for name in names}
    if retrain:
        recipes = {n: dataclasses.replace(recipe, shipped=False) for n, recipe in recipes.items()}
    absent = {n: recipe for n, recipe in recipes.items() if recipe.shipped and not _ships(n)}
    for name in absent:
        if task != ALL_TASKS:
            raise UserError(f"--task: {NOTHING_SHIPS} for {name} (give --retrain to train it here)")
        print(f"{name}: left out, as {NOTHING_SHIPS} for it (--retrain trains it here)", flush=True)
    present = {name: recipe for name, recipe in recipes.items() if name not in absent}
    with open_run(out) as run:
        run.settle("reproduce", {"task": task, "scale": scale, "seed": seed, "retrain": retrain})

        def work() -> None:
            for name, recipe in present.items():
                _run_task(run, name, recipe, seed, mesh, distill_command(name, scale, seed))
            _conclude(run, present, absent)

        interruptible(work, "study stopped; what is finished is kept")
    return out / "report.html"


def _ships(task: str) -> bool:
    return shipped_stages().get(task) == STAGES


def _run_task(
    run: RunFolder, task: str, recipe: Recipe, seed: int, mesh: Mesh | None, distilling: str
) -> None:
    object_ = make_task(task, **recipe.task_options)
    objective = recipe.protocol.objective
    fits_shipped = False
    if recipe.shipped:
        fits_shipped = place_shipped(run, task, recipe)
    else:
        place_searches(run, task)
        _train_and_tune(run, object_, recipe, seed, mesh)
    with _timed(run, task, "tuned baselines again"):
        rerun_tables(run, object_)
    with _timed(run, task, "evaluation"):
        evaluate_all(run, object_, HeldOut(seed, recipe.test_problems, objective), mesh=mesh)
    held_out = HeldOut(seed, recipe.analysis_problems, objective)
    few = HeldOut(seed, recipe.explained_problems, objective)
    with _timed(run, task, "analysis"):
        analyze_task(run, object_, held_out)
    with _timed(run, task, "mechanisms"):
        explain_task(run, object_, few)
    with _timed(run, task, "explorer"):
        explore_task(run, object_, held_out, few)
    with _timed(run, task, "distillation"):
        what = Distilling(recipe.protocol, recipe.distillation, seed, distilling)
        distill_task(run, object_, what, shipped=fits_shipped, mesh=mesh)


def _train_and_tune(
    run: RunFolder, task: Task, recipe: Recipe, seed: int, mesh: Mesh | None
) -> None:
    name, protocol = describe_task(task).name, recipe.protocol
    with _timed(run, name, "training"):
        train(
            run, task, recipe.architecture, protocol, seed=recipe.training_seed + seed,
            devices=mesh,
        )  # fmt: skip
    searching = SearchProtocol(
        objective=protocol.objective,
        num_samples=recipe.tuning_samples,
        num_problems=recipe.tuning_problems,
        rescore_top=recipe.rescore_top,
        rescore_problems=recipe.rescore_problems,
    )
    for baseline in recipe.baselines:
        with _timed(run, name, f"tuning {baseline}"):
            tune(
                run, task, get_baseline(baseline), searching, seed=seed,
                execution=Execution(mesh=mesh),
            )  # fmt: skip


def _conclude(run: RunFolder, present: dict[str, Recipe], absent: dict[str, Recipe]) -> None:
    """Claims, figures and report, made again only where their inputs changed."""
    inputs = {**_fingerprint(run, list(present)), **dict.fromkeys(absent, NOTHING_SHIPS)}
    marker = run.path / FIGURES / DRAWN
    with contextlib.suppress(UserError):
        if read_json(marker, dict) == inputs:
            return
    # Drawing libraries take a second to import: not for a finished study.
    from optdyn.study._drawing import draw_study
    from optdyn.study._results import read_results
    from optdyn.study.page import build_report

    results = [
        read_results(run.task_folder(task), task, recipe.protocol.normalization)
        for task, recipe in present.items()
    ]
    claims = [
        dataclasses.replace(claim, origin=origin(run, result.task))
        for result in results
        for claim in _claims(result)
    ]
    for task, recipe in absent.items():
        claims += claims_not_measured(task, recipe.baselines, NOTHING_SHIPS)
    write_json(run.path / LEDGER, claims)
    with _timed(run, "all tasks", "figures"):
        draw_study(results, run.path / FIGURES)
    print("writing the report", flush=True)
    build_report(run.path)
    write_json(marker, inputs)


def _claims(result: TaskResults) -> list[Claim]:
    edges = {name: sorted(best(table).edges) for name, table in result.tables.items()}
    least = LEAST_ADVANTAGE.get(result.task, {})
    return [
        *comparison_claims(result.task, result.summary, least),
        *momentum_claims(result.task, result.analysis),
        *interior_claims(result.task, edges),
        *rerun_claims(result.task, result.reruns),
        *mechanism_claims(result.task, result.explained),
        *distillation_claims(result.task, result.distilled),
    ]


@contextlib.contextmanager
def _timed(run: RunFolder, task: str, part: str) -> Iterator[None]:
    """Add the block's seconds to ``timings.json``, if it did anything in the run folder."""
    before, started = _snapshot(run.path), time.monotonic()
    yield
    if _snapshot(run.path) != before:
        path = run.path / TIMINGS
        timings = _kept_timings(path)
        parts = timings.setdefault(task, {})
        parts[part] = round(parts.get(part, 0.0) + time.monotonic() - started, 1)
        write_json(path, timings)


def _kept_timings(path: Path) -> Timings:
    if not path.exists():
        return {}
    try:
        return read_json(path, Timings)
    except UserError as error:
        print(f"starting the timings over: {error}", flush=True)
        return {}


def _snapshot(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def _fingerprint(run: RunFolder, tasks: list[str]) -> dict[str, str]:
    """What claims, figures and report are made from: a hash of every result, and the version."""
    hashes = {"version": optdyn.__version__}
    for task in tasks:
        folder = run.task_folder(task)
        for pattern in ("*.json*", "evaluation/*", "tuning/*"):
            for path in sorted(folder.glob(pattern)):
                name = str(path.relative_to(run.path))
                hashes[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return hashes
