"""``optdyn train``."""

from __future__ import annotations

from optdyn.cli import devices
from optdyn.cli.options import parse_settings
from optdyn.cli.settings import TrainSettings
from optdyn.errors import UserError
from optdyn.experiments.cards import require_architecture
from optdyn.experiments.checkpoints import load_optimizer
from optdyn.experiments.run_folder import open_run
from optdyn.experiments.training_run import train


def command(argv: list[str]) -> None:
    """Parse ``argv`` and meta-train."""
    settings = parse_settings(TrainSettings, "train", argv)
    task_options, architecture = settings.task_options(), settings.architecture()
    protocol = settings.protocol(settings.learning_rate)
    devices.require_even_batch(settings.batch_size, settings.chunk, settings.devices)
    mesh = devices.start(settings.devices, settings.batch_size, settings.chunk)
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
            initial=initial,
        )
