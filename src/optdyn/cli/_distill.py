"""``optdyn distill``."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING

from optdyn.cli import _options as options
from optdyn.cli._devices import start
from optdyn.cli._output import Result, present

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from optdyn.distillation import Kept
    from optdyn.study import Recipe, Study
    from optdyn.tasks import Task

PLAIN = "rosenbrock"
"""The built-in task whose numbers of steps and problems suit a task of one's own."""


def distill(
    *,
    out: Path = options.STUDY,
    task: options.ChosenTask = options.TaskOptions(),
    scale: options.Scale = "laptop",
    seed: options.Seed = 0,
    devices: options.Devices = None,
    output: options.Output = options.OutputOptions(),
) -> None:
    """Fit readable optimizers, and print what part of the advantage each size has.

    Args:
        out: run folder, with a trained and evaluated optimizer
        task: whose learned optimizer
        scale: how long fits are, and on how many problems: smoke (seconds, to try it out),
            laptop or paper
        seed: seed of all random numbers
        devices: cores or accelerators that share the problems (none: all)
        output: what is printed
    """
    mesh, chosen = start(devices), task.make()
    from optdyn.study import Study

    study = Study((_recipe(out, chosen, scale),), scale, seed)
    present(output, lambda: distilled(out, study, mesh))


def _recipe(out: Path, task: Task, scale: str) -> Recipe:
    """How the optimizer that was trained on ``task`` in ``out`` is distilled.

    As the built-in task's recipe, where it was trained and is judged as that says; else for the
    task and the objective that it was trained with.
    """
    from optdyn.runs._run_folder import RunFolder
    from optdyn.runs._training_run import training_card
    from optdyn.study import recipe_for
    from optdyn.tasks import TASKS, describe_task

    described = describe_task(task)
    usual = recipe_for(described.name if described.name in TASKS else PLAIN, scale)
    card = training_card(RunFolder(out), described.name)  # it is read alone
    protocol = usual.protocol if card is None else card.protocol
    if (describe_task(usual.task), usual.protocol.objective) == (described, protocol.objective):
        return usual
    return dataclasses.replace(usual, task=task, protocol=protocol)


def distilled(out: Path, study: Study, mesh: Mesh | None = None) -> Result:
    """Fit readable optimizers to a study's first task in ``out``; gives what each size has."""
    from optdyn.study import distill as distill_in

    found = distill_in(out, study, mesh)
    lines = [
        f"{_share(row.kept)}  {row.numbers:>2} numbers  {row.name}"
        f"{'  (chosen)' if place == found.chosen else ''}"
        for place, row in enumerate(found.sizes)
    ]
    head = f"part of the advantage over {found.baseline} that each size has:"
    learned, rival = found.learned.mean, found.inputs.baseline[found.baseline].mean
    if not learned < rival:
        head = (
            f"the learned optimizer ({learned:.4g}) has no advantage over {found.baseline} "
            f"({rival:.4g}), so that no size has a part of it:"
        )
    values = {name: getattr(found, name) for name in ("baseline", "chosen", "sizes", "without")}
    return Result({"task": study.recipes[0].name, **values}, [head, *lines])


def _share(part: Kept) -> str:
    if not math.isfinite(part.fraction):
        return f"{'none':>12}"
    return f"{part.fraction:6.2f} ± {part.standard_error:.2f}"
