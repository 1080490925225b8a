"""Readable optimizers fitted anew in the run folder of a study."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from optdyn.distributed._interrupts import interruptible
from optdyn.runs._distillation_fit import Distilling
from optdyn.runs._distillation_run import distill_task
from optdyn.runs._explained_results import DistillationResult
from optdyn.runs._run_folder import open_run
from optdyn.study._recipes import recipe_for
from optdyn.tasks import make_task

if TYPE_CHECKING:
    from jax.sharding import Mesh


def distill(
    out: Path, task: str, scale: str, seed: int, mesh: Mesh | None = None
) -> DistillationResult:
    """Fit and judge readable optimizers of ``task`` in ``out`` as the recipe at ``scale`` says.

    Also where the recipe takes those that ship with the package. Goes on where it
    was left. Returns what `distill_task` does, with its errors.
    """
    recipe = recipe_for(task, scale)
    command = distill_command(task, scale, seed)
    what = Distilling(recipe.protocol, recipe.distillation, seed, command)

    def work() -> DistillationResult:
        return distill_task(run, make_task(task, **recipe.task_options), what, mesh=mesh)

    with open_run(out, create=False) as run:
        return interruptible(work, "distillation stopped; finished sizes are saved")


def distill_command(task: str, scale: str, seed: int) -> str:
    """The command line that fits them, given the study's run folder by ``--out``."""
    return f"optdyn distill --task {task} --scale {scale} --seed {seed}"
