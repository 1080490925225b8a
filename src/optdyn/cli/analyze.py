"""``optdyn analyze``."""

from __future__ import annotations

from typing import Any

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
        _print(analyze_task(run, settings.task, task_options, judged_on))

    with open_run(settings.out, create=False) as run:
        interruptible(work, "the analysis stopped; finished checkpoints are saved")


def _print(analysis: dict[str, Any]) -> None:
    """The momentum stage and the last checkpoint, in a few lines."""
    tuned = analysis["tuned"]
    print(
        f"tuned momentum: learning rate {tuned['alpha']:.4g}, momentum {tuned['beta']:.4g}, "
        f"meta-objective {tuned['meta_objective']:.4g}"
    )
    rows = {row["meta_step"]: row for row in analysis["checkpoints"]}
    degenerate = [step for step, row in rows.items() if row["modes"].get("degenerate")]
    if degenerate:
        print(
            f"eigenvectors nearly parallel at {len(degenerate)} of {len(rows)} checkpoints "
            f"(first at meta-step {degenerate[0]}): there only sums of modes mean anything"
        )
    for name in ("momentum_stage", "final"):
        row = rows[analysis[name]]
        objective = "diverged" if row["meta_objective"] is None else f"{row['meta_objective']:.4g}"
        print(
            f"{name.replace('_', ' ')}: meta-step {row['meta_step']}, "
            f"meta-objective {objective}; leading mode: "
            f"learning rate {row['alpha']:.4g}, momentum {row['beta']:.4g}"
        )
