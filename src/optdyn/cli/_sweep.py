"""``optdyn sweep``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

from optdyn.cli import _devices as devices_
from optdyn.cli import _options as options
from optdyn.cli._output import Result, present
from optdyn.distributed._interrupts import interruptible
from optdyn.errors import (
    UserError,
    require_choice,
    require_number,
    require_positive_int,
)
from optdyn.meta_training import MetaTraining
from optdyn.optimizers import Architecture
from optdyn.optimizers._cells import CELLS
from optdyn.random_streams import LARGEST_SEED
from optdyn.runs import Base, Sweep, open_run, run_sweep
from optdyn.runs._search_run import best_rows
from optdyn.study._recipes import LAPTOP


@dataclasses.dataclass(frozen=True)
class SweepOptions:
    """What is varied.

    Attributes:
        tasks: what the optimizers work on: built-in tasks, or module:Task for one of yours
        cells: kinds of recurrent network
        units: numbers of hidden units
        seeds: seeds of all random numbers
        learning_rates: meta learning rates, at the start of a training
        num_meta_steps: meta-steps of each training (none: as in optdyn reproduce)
        unroll_length: inner steps on each problem (none: as in optdyn reproduce)
        batch_size: problems sampled for each meta-step (none: as in optdyn reproduce)
        num_problems: unseen problems that each trained optimizer is tried on
    """

    tasks: tuple[str, ...] = ("linear_regression",)
    cells: tuple[str, ...] = ("gru",)
    units: tuple[int, ...] = (32,)
    seeds: tuple[int, ...] = (0,)
    learning_rates: tuple[float, ...] = (1e-3, 1e-2)
    num_meta_steps: options.MaybeCount = None
    unroll_length: options.MaybeCount = None
    batch_size: options.MaybeCount = None
    num_problems: options.Count = 64

    def __post_init__(self) -> None:
        for cell in self.cells:
            require_choice("cells", cell, list(CELLS))
        for units in self.units:
            require_positive_int("units", units)
        for seed in self.seeds:
            require_positive_int("seeds", seed, 0, LARGEST_SEED)
        for rate in self.learning_rates:
            require_number("learning_rates", rate)

    def sweep(self) -> Sweep:
        """The sweep these options describe. Raises `UserError`."""
        names = ("num_meta_steps", "unroll_length", "batch_size")
        given: dict[str, Any] = {n: getattr(self, n) for n in names if getattr(self, n) is not None}
        return Sweep(
            bases=tuple(_base(name, given) for name in dict.fromkeys(self.tasks)),
            cells=self.cells,
            units=self.units,
            seeds=self.seeds,
            learning_rates=self.learning_rates,
            num_problems=self.num_problems,
        )


def _base(name: str, given: dict[str, Any]) -> Base:
    recipe = LAPTOP.get(name)
    own = {} if recipe is None else recipe.task_options
    texts = tuple(f"{option}={value}" for option, value in own.items())
    try:
        task = options.TaskOptions(name, texts).make()
    except UserError as error:
        raise UserError(str(error).replace("--task:", "--tasks:", 1)) from None
    architecture, protocol = (
        (Architecture(), MetaTraining())
        if recipe is None
        else (recipe.architecture, recipe.protocol)
    )
    return Base(task, architecture, dataclasses.replace(protocol, **given))


Trainings = Annotated[SweepOptions, options.flat("Trainings", 1)]


def sweep(
    *,
    trainings: Trainings = SweepOptions(),
    out: Path = Path("runs/sweep"),
    devices: options.Devices = None,
    workers: options.Workers = options.EngineOptions(),
    output: options.Output = options.OutputOptions(),
) -> None:
    """Do every training, and print the best one of each task.

    Args:
        trainings: what is varied
        out: folder for all results; in one that has some, the command goes on from there
        devices: how many cores or accelerators share the problems, with --engine local (none: all)
        workers: where the trainings are done
        output: what is printed
    """
    what, engine = trainings.sweep(), workers.start()
    mesh = devices_.start(devices, what.common_batch())

    def work() -> Result:
        rows = best_rows(run_sweep(run, what, engine=engine, mesh=mesh))
        lines = [
            f"best on {row.task}: cell {row.cell}, {row.units} units, seed {row.seed}, "
            f"learning rate {row.learning_rate:.4g}: meta-objective {row.meta_objective:.6g}"
            for row in rows
        ]
        return Result({"best": rows}, lines)

    with open_run(out) as run:
        message = "sweep stopped; finished trainings are saved"
        present(output, lambda: interruptible(work, message))
