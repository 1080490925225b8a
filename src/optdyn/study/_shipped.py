"""What ships with the package, put where a run's own results would lie."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from optdyn.errors import UserError
from optdyn.pretrained import Shipped, load_shipped, shipped_stages
from optdyn.pretrained._shipped import read_listed, shipped_card, shipped_searches
from optdyn.runs._run_folder import RunFolder
from optdyn.runs._stage_run import STAGE, STAGE_SEARCH
from optdyn.runs._store import read_bytes, read_result, write_bytes
from optdyn.runs._training_run import settle_training
from optdyn.study._recipes import Recipe
from optdyn.study._seeds import SEEDS, SeedsResult
from optdyn.tasks import describe_task


def shipped_part(task: str) -> str:
    """The part of a run's settings that lists the files taken from the package."""
    return f"shipped/{task}"


def place_shipped(run: RunFolder, recipe: Recipe, shipping: Path) -> bool:
    """Copy a task's shipped checkpoints, training log, tables and fits into ``run``.

    Everything after training, tuning and fitting then finds them where it finds a
    run's own. ``config.json`` records their SHA-256, under ``shipped/<task>``, and the
    training's settings as if it had been done here. Returns whether readable
    optimizers are among them.

    Raises `UserError` for a damaged file, for what is of another objective or
    task than the recipe's, and for a folder that holds others.
    """
    name = recipe.name
    shipped = load_shipped(name, shipping)
    _require_fit(recipe, shipped)
    digests = {place: hashlib.sha256(c).hexdigest() for place, c in shipped.files.items()}
    run.settle(shipped_part(name), {"files": digests})
    settle_training(run, shipped.card)
    _place(run, name, shipped.files)
    return shipped.fitted is not None


def place_searches(run: RunFolder, task: str, shipping: Path) -> None:
    """Copy the package's searches of the meta learning rate on ``task`` into ``run``.

    They show how a recipe's architecture and learning rate were chosen, also
    where the training is done here.
    """
    _place(run, task, shipped_searches(shipping / task))


def place_stage(run: RunFolder, recipe: Recipe, shipping: Path) -> Path | None:
    """Copy the shipped checkpoint that is the recipe's momentum stage into ``run``.

    None where none ships that comes from the recipe's own trainings for it. Raises `UserError`
    for a damaged file.
    """
    name = recipe.name
    if recipe.stage is None or "momentum" not in shipped_stages(shipping).get(name, ()):
        return None
    card = shipped_card(name, "momentum", shipping)
    if (card.architecture, card.protocol) != (recipe.stage.architecture, recipe.stage.protocol):
        return None
    places = {STAGE: "momentum.safetensors", STAGE_SEARCH: STAGE_SEARCH}
    _place(run, name, {to: read_listed(shipping / name, at) for to, at in places.items()})
    return run.task_folder(name) / STAGE


def place_seeds(run: RunFolder, recipe: Recipe, shipping: Path) -> None:
    """Copy the package's spread of a recipe's numbers over seeds into ``run``.

    Nothing is copied where none ships for this very recipe, or where the run has its own.
    Raises `UserError` for a damaged file.
    """
    source, own = shipping / recipe.name, run.task_folder(recipe.name) / SEEDS
    if own.exists() or not (source / SEEDS).exists():
        return
    content = read_listed(source, SEEDS)
    found = read_result(source / SEEDS, SeedsResult)
    if (found.architecture, found.protocol) == (recipe.architecture, recipe.protocol):
        write_bytes(own, content)


def _place(run: RunFolder, task: str, files: Mapping[str, bytes]) -> None:
    folder = run.task_folder(task)
    for place, content in files.items():
        if not (folder / place).exists() or read_bytes(folder / place) != content:
            write_bytes(folder / place, content)


def _require_fit(recipe: Recipe, shipped: Shipped) -> None:
    """What was trained and tuned must have been so for the objective it is judged by."""
    objective, described = recipe.protocol.objective, describe_task(recipe.task)
    name = described.name
    if shipped.card.protocol.objective != objective:
        raise UserError(f"shipped {name}: its weights were trained for another meta-objective")
    missing = [baseline for baseline in recipe.baselines if baseline not in shipped.tables]
    if missing:
        raise UserError(f"shipped {name}: no search table of {', '.join(missing)}")
    for baseline, table in shipped.tables.items():
        found = table.settings
        if (found.task, found.task_options, found.objective) != (
            name, described.options, objective
        ):  # fmt: skip
            raise UserError(
                f"shipped {name}: {baseline} was tuned for another task or meta-objective"
            )
    if shipped.fitted is None:
        return
    fitted = shipped.fitted.inputs
    if (fitted.task_options, fitted.protocol.objective) != (described.options, objective):
        raise UserError(
            f"shipped {name}: its readable optimizers were fitted for another task or "
            "meta-objective"
        )
