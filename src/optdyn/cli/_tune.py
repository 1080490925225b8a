"""``optdyn tune``."""

from __future__ import annotations

from optdyn.cli import _devices as devices
from optdyn.cli._options import parse_settings
from optdyn.cli._output import Result, present
from optdyn.cli._settings import TuneSettings
from optdyn.optimizers._baselines import get_baseline
from optdyn.runs._interrupts import interruptible
from optdyn.runs._run_folder import open_run
from optdyn.runs._tuning_run import table_path, tune
from optdyn.search import Execution, SearchProtocol, best


def command(argv: list[str]) -> None:
    """Parse ``argv``, tune, and print the best combination."""
    settings = parse_settings(TuneSettings, "tune", argv)
    task, baseline = settings.make_task(), get_baseline(settings.baseline)
    protocol = SearchProtocol(
        objective=settings.objective(),
        num_samples=settings.samples,
        num_problems=settings.problems,
        rescore_top=settings.rescore_top,
        rescore_problems=settings.rescore_problems,
        stand_in=settings.stand_in_options(),
    )
    engine = settings.start_engine()
    mesh = devices.start(settings.devices)

    def work() -> Result:
        execution = Execution(mesh=mesh, engine=engine)
        table = tune(run, task, baseline, protocol, seed=settings.seed, execution=execution)
        winner = best(table)
        values = ", ".join(f"{name} {value:.6g}" for name, value in winner.hyperparameters.items())
        return Result(
            {
                "task": settings.task,
                "baseline": settings.baseline,
                "hyperparameters": winner.hyperparameters,
                "meta_objective": winner.score,
                "edges": sorted(winner.edges),
                "table": table_path(run.task_folder(task), settings.baseline),
            },
            [f"best {settings.baseline}: {values}: meta-objective {winner.score:.6g}"],
        )

    with open_run(settings.out) as run:
        message = "tuning stopped; finished chunks are saved"
        present(settings, lambda: interruptible(work, message))
