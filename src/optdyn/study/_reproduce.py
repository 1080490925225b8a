"""Train, tune, evaluate, analyze, draw, judge, report: one resumable command."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from jax.sharding import Mesh

from optdyn import runs
from optdyn.distributed._interrupts import interruptible
from optdyn.errors import UserError, require_positive_int
from optdyn.optimizers._baselines import get_baseline
from optdyn.pretrained import shipped_stages
from optdyn.pretrained._shipped import FOLDER, STAGES
from optdyn.runs._run_folder import require_own
from optdyn.search import Execution
from optdyn.study._recipes import NOTHING_SHIPS, Recipe
from optdyn.study._seeds import measure_seeds
from optdyn.study._shipped import place_searches, place_seeds, place_shipped, place_stage
from optdyn.study._timings import timed


@dataclasses.dataclass(frozen=True)
class Study:
    """What a study does. ``scale``: what the command line calls its ``recipes``.

    ``seed`` settles every random number. ``retrain``: train and tune even where a recipe takes
    what ships. ``seeds``: how many trainings of each recipe are made here and measured; the
    ledger says how claims spread over them. ``shipping``: the folder of what ships, the
    package's own.

    Raises `UserError` unless ``seeds`` is a positive integer.
    """

    recipes: tuple[Recipe, ...]
    scale: str
    seed: int = 0
    retrain: bool = False
    seeds: int = 1
    shipping: Path = FOLDER

    def __post_init__(self) -> None:
        require_positive_int("--seeds", self.seeds)

    def prepared(self) -> list[Recipe]:
        """The recipes as they are run."""
        return [
            dataclasses.replace(recipe, shipped=recipe.shipped and not self.retrain)
            for recipe in self.recipes
        ]

    def ships(self, recipe: Recipe) -> bool:
        """Whether the weights of a recipe's task ship."""
        return shipped_stages(self.shipping).get(recipe.name) == STAGES

    def distilling(self, recipe: Recipe) -> runs.Distilling:
        """How readable optimizers are fitted."""
        command = f"optdyn distill --task {recipe.name} --scale {self.scale} --seed {self.seed}"
        return runs.Distilling(recipe.protocol, recipe.distillation, self.seed, command)


def reproduce(out: Path, study: Study, mesh: Mesh | None = None) -> Path:
    """Run a study in ``out``; returns the report's path.

    Each part goes on where it was left, and a finished study is left untouched. Of several
    tasks, one whose weights do not ship is left out, and its claims say so.

    Raises `UserError` for a folder that holds other settings, and when a single task's
    weights do not ship.
    """
    require_own(out)
    recipes = study.prepared()
    absent = [recipe for recipe in recipes if recipe.shipped and not study.ships(recipe)]
    for recipe in absent:
        if len(recipes) == 1:
            raise UserError(
                f"--task: {NOTHING_SHIPS} for {recipe.name} (give --retrain to train it here)"
            )
        print(
            f"{recipe.name}: left out, as {NOTHING_SHIPS} for it (--retrain trains it here)",
            flush=True,
        )
    with runs.open_run(out) as run:
        tasks = [recipe.name for recipe in recipes]
        chosen = {"scale": study.scale, "seed": study.seed, "retrain": study.retrain}
        run.settle("reproduce", {"tasks": tasks, **chosen})

        def work() -> Path:
            for recipe in recipes:
                if recipe not in absent:
                    _run_task(run, recipe, study, mesh)
            return report(run, absent)

        return interruptible(work, "study stopped; finished parts are saved")


def report(run: runs.RunFolder, absent: Sequence[Recipe] | None = None) -> Path:
    """Judge the claims, draw the figures and write the page; returns the page's path.

    Everything that the folder holds is shown, after any command. Nothing is done when nothing
    changed. ``absent``: the recipes of a study whose weights do not ship, so that their claims
    could not be measured; if it is not given, the ledger's own such claims stay.
    """
    # Drawing libraries take a second to import: only this needs them.
    from optdyn.study._report import conclude

    return conclude(run, absent)


def distill(out: Path, study: Study, mesh: Mesh | None = None) -> runs.DistillationResult:
    """Fit and judge readable optimizers as the study's one recipe says, in its folder.

    Also where the recipe takes those that ship with the package. Goes on where it
    was left, with the errors of `distill_task`.
    """
    (recipe,) = study.recipes
    with runs.open_run(out, create=False) as run:
        return interruptible(
            lambda: runs.distill_task(run, recipe.task, study.distilling(recipe), mesh=mesh),
            "distillation stopped; finished sizes are saved",
        )


def _run_task(run: runs.RunFolder, recipe: Recipe, study: Study, mesh: Mesh | None) -> None:
    task, name, seed = recipe.task, recipe.name, study.seed
    fits_shipped = False
    if recipe.shipped:
        fits_shipped = place_shipped(run, recipe, study.shipping)
    else:
        place_searches(run, name, study.shipping)
        _train_and_tune(run, recipe, seed, mesh)
    with timed(run, name, "tuned baselines again"):
        runs.rerun_tables(run, task)
    if recipe.linear is not None:
        with timed(run, name, "best linear optimizers"):
            validation = recipe.held_out(seed, recipe.analysis_problems)
            runs.tune_linear(run, task, validation, recipe.protocol, recipe.linear)
    with timed(run, name, "evaluation"):
        runs.evaluate_all(run, task, recipe.held_out(seed, recipe.test_problems), mesh=mesh)
    held_out = recipe.held_out(seed, recipe.analysis_problems)
    few = recipe.held_out(seed, recipe.explained_problems)
    with timed(run, name, "analysis"):
        runs.analyze_task(run, task, held_out, _momentum_stage(run, recipe, study, mesh))
    with timed(run, name, "mechanisms"):
        runs.explain_task(run, task, few)
    with timed(run, name, "explorer"):
        runs.explore_task(run, task, held_out, few)
    with timed(run, name, "distillation"):
        runs.distill_task(run, task, study.distilling(recipe), shipped=fits_shipped, mesh=mesh)
    if study.seeds == 1:
        place_seeds(run, recipe, study.shipping)
    elif recipe.shipped:
        print(
            f"{name}: its spread over seeds is not measured, as its weights ship "
            "(--retrain trains it here)",
            flush=True,
        )
    else:
        with timed(run, name, "other seeds"):
            measure_seeds(run, recipe, seed, study.seeds, mesh)


def _momentum_stage(
    run: runs.RunFolder, recipe: Recipe, study: Study, mesh: Mesh | None
) -> Path | None:
    """The checkpoint that is judged as the momentum stage, where the recipe has one of its own."""
    if recipe.stage is None:
        return None
    if not study.retrain:
        shipped = place_stage(run, recipe, study.shipping)
        if shipped is not None:
            return shipped
    held_out = recipe.held_out(study.seed, recipe.analysis_problems)
    return runs.find_stage(run, recipe.task, held_out, recipe.stage, mesh)


def _train_and_tune(run: runs.RunFolder, recipe: Recipe, seed: int, mesh: Mesh | None) -> None:
    with timed(run, recipe.name, "training"):
        runs.train(
            run, recipe.task, recipe.architecture, recipe.protocol,
            seed=recipe.training_seed + seed, devices=mesh,
        )  # fmt: skip
    execution = Execution(mesh=mesh)
    for baseline in recipe.baselines:
        with timed(run, recipe.name, f"tuning {baseline}"):
            runs.tune(
                run, recipe.task, get_baseline(baseline), recipe.search(), seed=seed,
                execution=execution,
            )  # fmt: skip
