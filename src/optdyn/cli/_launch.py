"""``optdyn launch``."""

from __future__ import annotations

import sys

from optdyn.cli._cluster_settings import LaunchSettings
from optdyn.cli._options import parse_settings
from optdyn.cli._settings import TrainSettings
from optdyn.distributed._launcher import launch
from optdyn.errors import UserError
from optdyn.runs._interrupts import Interrupted, LostProcess, noted_signals
from optdyn.runs._run_folder import open_run
from optdyn.runs._store import require_file

DISTRIBUTED = "--distributed"
BAD_INPUT = 2


def command(argv: list[str]) -> None:
    """Run the command after ``--`` in several processes, and end when they have."""
    own, separator, rest = _split(argv)
    settings = parse_settings(LaunchSettings, "launch", own)
    if not separator or not rest or rest[0] != "train":
        raise UserError("launch: needs -- and a command (allowed: train)")
    _require_sound(rest[1:], settings.processes)
    if DISTRIBUTED not in rest:
        rest = [*rest, DISTRIBUTED]
    with noted_signals() as noted:
        failed = launch([sys.executable, "-m", "optdyn.cli.main", *rest], settings.processes, noted)
        signum = noted()
        if signum is not None and failed is not None:
            raise Interrupted(signum, "all processes stopped")
    if failed is not None:
        code, what = failed
        if code == BAD_INPUT:
            raise UserError(f"{what} (told above)")
        raise LostProcess(f"{what}, and the job with it")


def _require_sound(argv: list[str], processes: int) -> None:
    """Tell here, once, what each process would find wrong with the command."""
    settings = parse_settings(TrainSettings, "train", argv)
    settings.make_task()
    if processes > settings.batch_size * settings.components:
        raise UserError(
            f"--processes: {processes} is not allowed (at most one for each problem of "
            f"--batch-size {settings.batch_size})"
        )
    if settings.initial is not None:
        require_file(settings.initial)
    with open_run(settings.out):
        pass


def _split(argv: list[str]) -> tuple[list[str], bool, list[str]]:
    if "--" not in argv:
        return argv, False, []
    at = argv.index("--")
    return argv[:at], True, argv[at + 1 :]
