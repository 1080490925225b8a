"""``optdyn reproduce``."""

from __future__ import annotations

from pathlib import Path

from optdyn.cli import _devices as devices
from optdyn.cli._options import parse_settings
from optdyn.cli._output import Result, present
from optdyn.cli._settings import ReproduceSettings
from optdyn.meta_training._trainer import MetaTraining
from optdyn.study._claims import LEDGER, read_ledger


def command(argv: list[str]) -> None:
    """Parse ``argv``, do the whole study, and tell which claims hold and where the report is."""
    settings = parse_settings(ReproduceSettings, "reproduce", argv)
    mesh = devices.start(settings.devices, MetaTraining().batch_size)
    from optdyn.study import reproduce

    def work() -> Result:
        report = reproduce(
            out=settings.out,
            task=settings.task,
            scale=settings.scale,
            seed=settings.seed,
            retrain=settings.retrain,
            mesh=mesh,
        )
        return _result(report, settings.out / LEDGER)

    present(settings, work)


def _result(report: Path, ledger: Path) -> Result:
    claims = read_ledger(ledger)
    missed = [claim for claim in claims if not claim["passed"]]
    lines = [
        f"claims: {len(claims) - len(missed)} of {len(claims)} hold",
        *(
            f"  not met: {claim['id']}: {claim['measured']} ({claim['threshold']})"
            for claim in missed
        ),
        f"report: {report}",
    ]
    return Result({"report": report, "claims": claims}, lines)
