"""``optdyn distill``."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from optdyn.cli import _devices as devices
from optdyn.cli._options import parse_settings
from optdyn.cli._output import Result, present
from optdyn.cli._settings import DistillSettings

if TYPE_CHECKING:
    from optdyn.distillation import Kept


def command(argv: list[str]) -> None:
    """Parse ``argv``, fit readable optimizers, and print what each size keeps."""
    settings = parse_settings(DistillSettings, "distill", argv)
    mesh = devices.start(settings.devices)
    from optdyn.study._distillation import distill

    def work() -> Result:
        found = distill(settings.out, settings.task, settings.scale, settings.seed, mesh)
        lines = [
            f"{_share(row.kept)}  {row.numbers:>2} numbers  {row.name}"
            f"{'  (chosen)' if place == found.chosen else ''}"
            for place, row in enumerate(found.sizes)
        ]
        head = f"part of the advantage over {found.baseline} that is kept:"
        told = {name: getattr(found, name) for name in ("baseline", "chosen", "sizes", "without")}
        return Result({"task": settings.task, **told}, [head, *lines])

    present(settings, work)


def _share(kept: Kept) -> str:
    if not math.isfinite(kept.fraction):
        return f"{'none':>12}"
    return f"{kept.fraction:6.2f} ± {kept.standard_error:.2f}"
