"""``optdyn analyze``."""

from __future__ import annotations

from optdyn.cli import devices
from optdyn.cli.options import parse_settings
from optdyn.cli.settings import AnalyzeSettings
from optdyn.experiments.analysis_run import AnalysisSettings, analyze_task
from optdyn.experiments.interrupts import interruptible
from optdyn.experiments.run_folder import open_run


def command(argv: list[str]) -> None:
    """Parse ``argv`` and analyze."""
    settings = parse_settings(AnalyzeSettings, "analyze", argv)
    task_options = settings.task_options()
    judged_on = AnalysisSettings(
        seed=settings.seed,
        num_problems=settings.problems,
        num_steps=settings.unroll_length,
        normalization=settings.normalization,
    )
    devices.start(settings.devices)

    def work() -> None:
        analyze_task(run, settings.task, task_options, judged_on)

    with open_run(settings.out, create=False) as run:
        interruptible(work, "the analysis stopped; finished checkpoints are saved")
