"""``optdyn evaluate``."""

from __future__ import annotations

from optdyn.cli import _devices as devices
from optdyn.cli._options import parse_settings
from optdyn.cli._output import Result, present
from optdyn.cli._settings import EvaluateSettings
from optdyn.errors import UserError
from optdyn.runs._checkpoints import load_optimizer
from optdyn.runs._evaluation_run import SUMMARY, evaluate_all, read_evaluations
from optdyn.runs._interrupts import interruptible
from optdyn.runs._plain import to_plain
from optdyn.runs._run_folder import open_run


def command(argv: list[str]) -> None:
    """Parse ``argv``, evaluate, and print each optimizer's meta-objective."""
    settings = parse_settings(EvaluateSettings, "evaluate", argv)
    task = settings.make_task()
    mesh = devices.start(settings.devices)
    if settings.checkpoint is not None:
        try:
            load_optimizer(settings.checkpoint)
        except UserError as error:
            raise UserError(f"--checkpoint: {error}") from None

    def work() -> Result:
        evaluations = evaluate_all(
            run,
            task,
            settings.held_out(settings.seed, settings.problems),
            checkpoint=settings.checkpoint,
            mesh=mesh,
        )
        return Result(
            {
                "task": settings.task,
                **to_plain(read_evaluations(run.task_folder(task) / SUMMARY)),
            },
            [
                f"{name:<18} {evaluation.mean:.4g} ± {evaluation.standard_error:.2g}"
                for name, evaluation in evaluations.items()
            ],
        )

    with open_run(settings.out, create=settings.checkpoint is not None) as run:
        message = "evaluation stopped; finished optimizers are saved"
        present(settings, lambda: interruptible(work, message))
