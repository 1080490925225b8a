"""``optdyn search-lr``."""

from __future__ import annotations

from typing import Annotated

from optdyn.cli import _devices as devices
from optdyn.cli import _options as options
from optdyn.cli._output import Result, present
from optdyn.distributed._interrupts import interruptible
from optdyn.meta_training import MetaTraining
from optdyn.optimizers import Architecture
from optdyn.runs import open_run
from optdyn.runs import search as search_in
from optdyn.search._learning_rate import LearningRateSearch, ranked
from optdyn.tasks import describe_task

Search = Annotated[LearningRateSearch, options.flat("Search", 3)]


def search_lr(
    *,
    task: options.ChosenTask = options.TaskOptions(),
    run: options.Run = options.RunOptions(),
    search: Search = LearningRateSearch(),
    architecture: options.Learned = Architecture(),
    protocol: options.Training = MetaTraining(),
    output: options.Output = options.OutputOptions(),
) -> None:
    """Search, and print the learning rates from best to worst."""
    chosen = task.make()
    devices.require_even_batch(protocol.batch_size, protocol.chunk, run.devices)
    mesh = devices.start(run.devices, protocol.batch_size, protocol.chunk)

    def work() -> Result:
        rows = ranked(
            search_in(folder, chosen, architecture, protocol, run.seed, search, mesh=mesh)
        )
        lines = ["learning rate  meta-steps  meta-objective"]
        lines += [
            f"{row.learning_rate:13.4g}  {row.num_meta_steps:10d}  {row.meta_objective:14.4g}"
            for row in rows
        ]
        return Result({"task": describe_task(chosen).name, "trainings": rows}, lines)

    with open_run(run.out) as folder:
        message = "the search stopped; finished trainings are saved"
        present(output, lambda: interruptible(work, message))
