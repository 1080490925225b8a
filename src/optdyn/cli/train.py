"""``optdyn train``."""

from __future__ import annotations

from optdyn.cli import devices
from optdyn.cli.options import parse_settings
from optdyn.cli.settings import TrainSettings
from optdyn.distributed import join
from optdyn.errors import UserError
from optdyn.experiments.cards import require_architecture
from optdyn.experiments.checkpoints import load_optimizer
from optdyn.experiments.run_folder import open_run
from optdyn.experiments.training_run import train, train_along


def command(argv: list[str]) -> None:
    """Parse ``argv`` and meta-train, alone or as one of several processes."""
    settings = parse_settings(TrainSettings, "train", argv)
    task_options, architecture = settings.task_options(), settings.architecture()
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
        train_along(settings.task, task_options, architecture, protocol, settings.seed, group)
        group.finish()
        return
    initial = None
    if settings.initial is not None:
        try:
            initial, _ = load_optimizer(settings.initial)
            require_architecture(initial.architecture, architecture, str(settings.initial))
        except UserError as error:
            raise UserError(f"--initial: {error}") from None
    with open_run(settings.out) as run:
        train(
            run,
            settings.task,
            task_options,
            architecture,
            protocol,
            settings.seed,
            mesh=mesh,
            group=group,
            initial=initial,
        )
        if group is not None:
            group.finish()
