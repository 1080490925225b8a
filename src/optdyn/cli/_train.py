"""``optdyn train``."""

from __future__ import annotations

from typing import Any

from optdyn.cli import _devices as devices
from optdyn.cli._options import parse_settings
from optdyn.cli._output import Result, present
from optdyn.cli._settings import TrainSettings
from optdyn.distributed import join
from optdyn.errors import UserError
from optdyn.optimizers import Architecture, ComponentwiseRNN
from optdyn.runs._cards import require_architecture
from optdyn.runs._checkpoints import analysis_checkpoints, load, load_optimizer
from optdyn.runs._run_folder import RunFolder, open_run
from optdyn.runs._training_run import CHECKPOINTS, train, train_along


def command(argv: list[str]) -> None:
    """Parse ``argv``, meta-train alone or as one of several processes, tell what was reached."""
    settings = parse_settings(TrainSettings, "train", argv)
    task, architecture = settings.make_task(), settings.architecture()
    protocol = settings.protocol(settings.learning_rate)
    group, mesh = None, None
    processes = settings.processes()
    if processes is None:
        settings.require_even_batch()
        mesh = devices.start(
            settings.devices, settings.batch_size, settings.chunk, settings.components
        )
    else:
        devices.use_compilation_cache()
        group = join(processes, settings.devices, settings.batch_size, settings.components)
    if group is not None and not group.is_first:
        train_along(task, architecture, protocol, settings.seed, group)
        group.finish()
        return
    start: Architecture | ComponentwiseRNN = architecture
    if settings.initial is not None:
        try:
            start = load(settings.initial)
            require_architecture(start.architecture, architecture, str(settings.initial))
        except UserError as error:
            raise UserError(f"--initial: {error}") from None

    def work() -> Result:
        train(run, task, start, protocol, seed=settings.seed, devices=group or mesh)
        if group is not None:
            group.finish()
        return _result(run, settings.task)

    with open_run(settings.out) as run:
        present(settings, work)


def _result(run: RunFolder, task: str) -> Result:
    checkpoint = analysis_checkpoints(run.task_folder(task) / CHECKPOINTS)[-1]
    _, card = load_optimizer(checkpoint)
    values: dict[str, Any] = {
        "task": task,
        "meta_steps": card.meta_step,
        "meta_objective": card.meta_objective,
        "checkpoint": checkpoint,
    }
    reached = "none" if card.meta_objective is None else f"{card.meta_objective:.4g}"
    line = f"{task}: meta-objective {reached} after {card.meta_step} meta-steps: {checkpoint}"
    return Result(values, [line])
