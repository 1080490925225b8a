"""``optdyn sweep``."""

from __future__ import annotations

from optdyn.cli import _devices as devices
from optdyn.cli._options import parse_settings
from optdyn.cli._settings import SweepSettings
from optdyn.runs._interrupts import interruptible
from optdyn.runs._run_folder import open_run
from optdyn.runs._sweep_run import best_rows, run_sweep


def command(argv: list[str]) -> None:
    """Parse ``argv``, do every training, and print the best one of each task."""
    settings = parse_settings(SweepSettings, "sweep", argv)
    sweep = settings.sweep()
    engine = settings.start_engine()
    mesh = devices.start(settings.devices, sweep.common_batch())

    def work() -> None:
        for row in best_rows(run_sweep(run, sweep, engine=engine, mesh=mesh)):
            print(
                f"best on {row.task}: cell {row.cell}, {row.units} units, seed "
                f"{row.seed}, learning rate {row.learning_rate:.4g}: "
                f"meta-objective {row.meta_objective:.6g}"
            )

    with open_run(settings.out) as run:
        interruptible(work, "sweep stopped; finished trainings are saved")
