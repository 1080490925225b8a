"""``optdyn launch``."""

from __future__ import annotations

import sys

from optdyn.cli.cluster_settings import LaunchSettings
from optdyn.cli.options import parse_settings
from optdyn.distributed.launcher import launch
from optdyn.errors import UserError
from optdyn.experiments.interrupts import Interrupted, LostProcess, noted_signals

DISTRIBUTED = "--distributed"
BAD_INPUT = 2


def command(argv: list[str]) -> None:
    """Run the command after ``--`` in several processes, and end when they have."""
    own, separator, rest = _split(argv)
    settings = parse_settings(LaunchSettings, "launch", own)
    if not separator or not rest or rest[0] != "train":
        raise UserError("launch: needs -- and a command (allowed: train)")
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


def _split(argv: list[str]) -> tuple[list[str], bool, list[str]]:
    if "--" not in argv:
        return argv, False, []
    at = argv.index("--")
    return argv[:at], True, argv[at + 1 :]
