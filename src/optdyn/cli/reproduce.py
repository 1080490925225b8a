"""``optdyn reproduce``."""

from __future__ import annotations

from optdyn.cli import devices
from optdyn.cli.options import parse_settings
from optdyn.cli.settings import ReproduceSettings
from optdyn.meta_training.trainer import MetaTraining


def command(argv: list[str]) -> None:
    """Parse ``argv`` and do the whole study."""
    settings = parse_settings(ReproduceSettings, "reproduce", argv)
    mesh = devices.start(settings.devices, MetaTraining().batch_size)
    from optdyn.study import reproduce

    reproduce(
        out=settings.out,
        task=settings.task,
        scale=settings.scale,
        seed=settings.seed,
        retrain=settings.retrain,
        mesh=mesh,
    )
