"""``optdyn distill``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from optdyn.cli._devices import start
from optdyn.cli._options import Devices, Output, OutputOptions, Scale, Seed, TaskName
from optdyn.cli._output import Result, present
from optdyn.cli._reading import one_of
from optdyn.tasks import TASKS

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from optdyn.distillation import Kept
    from optdyn.study import Study


def distill(
    *,
    out: Path = Path("runs/reproduce"),
    task: Annotated[TaskName, one_of(TASKS)] = "linear_regression",
    scale: Scale = "laptop",
    seed: Seed = 0,
    devices: Devices = None,
    output: Output = OutputOptions(),
) -> None:
    """Fit readable optimizers, and print what part of the advantage each size has.

    Args:
        out: run folder
        task: whose learned optimizer
        scale: whose recipe: smoke, laptop or paper
        seed: seed of every random number
        devices: devices to spread problems over (none: every core, or every accelerator)
        output: what is printed
    """
    mesh = start(devices)
    from optdyn.study import Study, recipes_for

    study = Study(recipes_for(task, scale), scale, seed)
    present(output, lambda: distilled(out, study, mesh))


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
    values = {name: getattr(found, name) for name in ("baseline", "chosen", "sizes", "without")}
    return Result({"task": study.recipes[0].name, **values}, [head, *lines])


def _share(part: Kept) -> str:
    if not math.isfinite(part.fraction):
        return f"{'none':>12}"
    return f"{part.fraction:6.2f} ± {part.standard_error:.2f}"
