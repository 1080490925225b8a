"""``optdyn evaluate``."""

from __future__ import annotations

from optdyn.cli import _devices as devices
from optdyn.cli._options import parse_settings
from optdyn.cli._output import Result, present
from optdyn.cli._settings import EvaluateSettings
from optdyn.errors import UserError
from optdyn.runs._checkpoints import load_optimizer
from optdyn.runs._evaluation_run import SUMMARY, evaluate_all
from optdyn.runs._files import read_json
from optdyn.runs._interrupts import interruptible
from optdyn.runs._run_folder import open_run


def command(argv: list[str]) -> None:
    """Parse ``argv``, evaluate, and print each optimizer's meta-objective."""
    settings = parse_settings(EvaluateSettings, "evaluate", argv)
    task_options = settings.task_options()
    mesh = devices.start(settings.devices)
    if settings.checkpoint is not None:
        try:
            load_optimizer(settings.checkpoint)
        except UserError as error:
            raise UserError(f"--checkpoint: {error}") from None

    def work() -> Result:
        evaluations = evaluate_all(
            run,
            settings.task,
            task_options,
            seed=settings.seed,
            num_problems=settings.problems,
            num_steps=settings.unroll_length,
            normalization=settings.normalization,
            checkpoint=settings.checkpoint,
            mesh=mesh,
        )
        return Result(
            {"task": settings.task, **read_json(run.task_folder(settings.task) / SUMMARY)},
            [
                f"{name:<18} {evaluation.mean:.4g} ± {evaluation.standard_error:.2g}"
                for name, evaluation in evaluations.items()
            ],
        )

    with open_run(settings.out, create=settings.checkpoint is not None) as run:
        message = "evaluation stopped; finished optimizers are saved"
        present(settings, lambda: interruptible(work, message))
