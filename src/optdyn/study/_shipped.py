"""What ships with the package, put where a run's own results would lie."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from optdyn.errors import UserError
from optdyn.pretrained import Shipped, load_shipped
from optdyn.pretrained._shipped import FOLDER, shipped_searches
from optdyn.runs._run_folder import RunFolder
from optdyn.runs._store import read_bytes, write_bytes
from optdyn.runs._training_run import settle_training, training_card
from optdyn.study._recipes import Recipe
from optdyn.tasks import describe_task, make_task


def place_shipped(run: RunFolder, task: str, recipe: Recipe) -> bool:
    """Copy a task's shipped checkpoints, training log, tables and fits into ``run``.

    Everything after training, tuning and fitting then finds them where it finds a
    run's own. ``config.json`` records their SHA-256, under ``shipped/<task>``, and the
    training's settings as if it had been done here. Returns whether readable
    optimizers are among them.

    Raises `UserError` for a damaged file, for what is of another objective or
    task than the recipe's, and for a folder that holds others.
    """
    shipped = load_shipped(task)
    _require_fit(task, recipe, shipped)
    digests = {place: hashlib.sha256(c).hexdigest() for place, c in shipped.files.items()}
    run.settle(shipped_part(task), {"files": digests})
    settle_training(run, shipped.card)
    _place(run, task, shipped.files)
    return shipped.fitted is not None


def place_searches(run: RunFolder, task: str) -> None:
    """Copy the package's searches of the meta learning rate on ``task`` into ``run``.

    They tell how a recipe's architecture and learning rate were chosen, also
    where the training is done here.
    """
    _place(run, task, shipped_searches(FOLDER / task))


def _place(run: RunFolder, task: str, files: Mapping[str, bytes]) -> None:
    folder = run.task_folder(task)
    for place, content in files.items():
        if not (folder / place).exists() or read_bytes(folder / place) != content:
            write_bytes(folder / place, content)


def _require_fit(task: str, recipe: Recipe, shipped: Shipped) -> None:
    """What was trained and tuned must have been so for the objective it is judged by."""
    protocol, found = recipe.protocol, shipped.card.protocol
    if found.objective != protocol.objective:
        raise UserError(f"shipped {task}: its weights were trained for another meta-objective")
    missing = [name for name in recipe.baselines if name not in shipped.tables]
    if missing:
        raise UserError(f"shipped {task}: no search table of {', '.join(missing)}")
    options = describe_task(make_task(task, **recipe.task_options)).options
    expected = (task, options, protocol.objective)
    for name, table in shipped.tables.items():
        its = table.settings
        if (its.task, its.task_options, its.objective) != expected:
            raise UserError(f"shipped {task}: {name} was tuned for another task or meta-objective")
    if shipped.fitted is None:
        return
    given = shipped.fitted.inputs
    if (task, given.task_options, given.protocol.objective) != expected:
        raise UserError(
            f"shipped {task}: its readable optimizers were fitted for another task or "
            "meta-objective"
        )


def shipped_part(task: str) -> str:
    """The part of a run's settings that lists the files taken from the package."""
    return f"shipped/{task}"


def origin(run: RunFolder, task: str) -> str:
    """One line for the ledger: shipped or made here, and what was run in meta-training."""
    card = training_card(run, task)
    if card is None:
        return "tuned in this run"
    architecture, protocol = card.architecture, card.protocol
    where = (
        "weights and search tables shipped with the package, evaluated in this run"
        if shipped_part(task) in run.settings()
        else "trained and tuned in this run"
    )
    usual = describe_task(make_task(task)).options
    parts = [
        f"{architecture.units} units ({architecture.cell_name})",
        f"batch {protocol.batch_size}",
        f"{protocol.num_meta_steps} meta-steps",
        *(f"{n} {value}" for n, value in card.task_options.items() if value != usual.get(n)),
    ]
    if card.initial:
        parts.append("fine-tuned from earlier weights")
    return f"{where}; meta-training: {', '.join(parts)}"
