"""``optdyn launch``."""

from __future__ import annotations

import sys
from typing import Annotated

from optdyn.cli._reading import whole
from optdyn.distributed._interrupts import Interrupted, LostProcess, noted_signals
from optdyn.distributed._processes import launch as launch_processes
from optdyn.errors import UserError
from optdyn.runs._run_folder import open_run
from optdyn.runs._store import require_file

DISTRIBUTED = "--distributed"
LARGEST_LAUNCH = 256
BAD_INPUT = 2


def launch(*command: str, processes: Annotated[int, whole(maximum=LARGEST_LAUNCH)] = 2) -> None:
    """Run the command after ``--`` in several processes, and end when they have.

    Args:
        command: after --: train and its options
        processes: number of processes to start
    """
    if not command or command[0] != "train":
        raise UserError("launch: needs -- and a command (allowed: train)")
    _require_sound(command, processes)
    if DISTRIBUTED not in command:
        command = (*command, DISTRIBUTED)
    with noted_signals() as noted:
        failed = launch_processes([sys.executable, "-m", "optdyn", *command], processes, noted)
        signum = noted()
        if signum is not None and failed is not None:
            raise Interrupted(signum, "all processes stopped")
    if failed is not None:
        code, what = failed
        if code == BAD_INPUT:
            raise UserError(f"{what} (see above)")
        raise LostProcess(f"{what}, and the job with it")


def _require_sound(command: tuple[str, ...], processes: int) -> None:
    """Say here, once, what each process would find wrong with the command."""
    from optdyn.cli.main import parse

    _, bound = parse(list(command))
    bound.apply_defaults()
    task, run, protocol, start = (
        bound.arguments[name] for name in ("task", "run", "protocol", "start")
    )
    task.make()
    if processes > protocol.batch_size * start.components:
        raise UserError(
            f"--processes: {processes} is not allowed (at most one for each problem of "
            f"--batch-size {protocol.batch_size})"
        )
    if start.initial is not None:
        require_file(start.initial)
    with open_run(run.out):
        pass
