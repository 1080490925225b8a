"""``optdyn tune``."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, Literal

from optdyn.cli import _devices as devices
from optdyn.cli import _options as options
from optdyn.cli._output import Result, present
from optdyn.cli._reading import one_of
from optdyn.distributed._interrupts import interruptible
from optdyn.errors import UserError
from optdyn.inner_loop import Objective
from optdyn.optimizers._baselines import BASELINES, get_baseline
from optdyn.runs import open_run
from optdyn.runs import tune as tune_in
from optdyn.runs._tuning_run import table_path
from optdyn.search import Execution, SearchProtocol, best
from optdyn.tasks import describe_task
from optdyn.tasks._description import with_options

if TYPE_CHECKING:
    BaselineName = str
else:
    BaselineName = Literal[tuple(BASELINES)]

USUAL = SearchProtocol()


@dataclasses.dataclass(frozen=True)
class SearchOptions:
    """The search.

    Attributes:
        baseline: hand-designed optimizer to tune
        num_samples: combinations of hyperparameters to try, drawn at random
        num_problems: problems on which each combination is tried
        rescore_top: how many of the best are tried again, on other problems
        rescore_problems: number of those other problems
        stand_in: an option of the task as NAME=VALUE that makes problems cheaper, such as
            points=256, for the first trials alone; may be given several times
    """

    baseline: Annotated[BaselineName, one_of(BASELINES)] = "momentum"
    num_samples: options.Count = USUAL.num_samples
    num_problems: options.Count = USUAL.num_problems
    rescore_top: options.Count = USUAL.rescore_top
    rescore_problems: options.Count = USUAL.rescore_problems
    stand_in: options.Texts = ()

    def protocol(self, objective: Objective) -> SearchProtocol:
        """The search these options describe. Raises `UserError`."""
        counts = {n: v for n, v in vars(self).items() if n not in ("baseline", "stand_in")}
        stand_in = options.pairs(self.stand_in, "--stand-in")
        return SearchProtocol(objective=objective, stand_in=stand_in, **counts)


Search = Annotated[SearchOptions, options.flat("Search", 4)]
Judged = Annotated[Objective, options.flat("Meta-objective", 3)]


def tune(
    *,
    task: options.ChosenTask = options.TaskOptions(),
    run: options.Run = options.RunOptions(),
    objective: Judged = Objective(),
    search: Search = SearchOptions(),
    workers: options.Workers = options.EngineOptions(),
    output: options.Output = options.OutputOptions(),
) -> None:
    """Tune, and print the best combination."""
    chosen, protocol = task.make(), search.protocol(objective)
    try:
        with_options(chosen, protocol.stand_in)
    except UserError as error:
        raise UserError(f"--stand-in: {error}") from None
    engine = workers.start()
    execution = Execution(mesh=devices.start(run.devices), engine=engine)

    def work() -> Result:
        baseline = get_baseline(search.baseline)
        table = tune_in(folder, chosen, baseline, protocol, seed=run.seed, execution=execution)
        winner = best(table)
        values = ", ".join(f"{name} {value:.6g}" for name, value in winner.hyperparameters.items())
        return Result(
            {
                "task": describe_task(chosen).name,
                "baseline": baseline.name,
                "hyperparameters": winner.hyperparameters,
                "meta_objective": winner.score,
                "edges": sorted(winner.edges),
                "table": table_path(folder.task_folder(chosen), baseline.name),
            },
            [f"best {baseline.name}: {values}: meta-objective {winner.score:.6g}"],
        )

    with open_run(run.out) as folder:
        message = "tuning stopped; finished chunks are saved"
        present(output, lambda: interruptible(work, message))
