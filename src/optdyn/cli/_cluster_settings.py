"""The settings of commands that use several processes or a cluster."""

from __future__ import annotations

import dataclasses
import os

from optdyn.cli._options import choice, integer, option, switch
from optdyn.distributed._processes import Processes, find_processes, read_address
from optdyn.errors import UserError
from optdyn.search._engines import ENGINES, Engine, read_engine_address, start_engine

LARGEST_LAUNCH = 256


@dataclasses.dataclass(frozen=True)
class DistributedSettings:
    """Several processes."""

    distributed: bool = switch(
        "be one of several processes that train together, each started with this command"
    )
    coordinator: str | None = option(
        None,
        "host:port of process 0 (none: $OPTDYN_COORDINATOR)",
        read_address,
        metavar="HOST:PORT",
    )
    num_processes: int | None = integer(
        None, "how many processes there are (none: $OPTDYN_NUM_PROCESSES)"
    )
    process_id: int | None = integer(
        None, "which of them this is, from 0 (none: $OPTDYN_PROCESS_ID)", minimum=0
    )

    def processes(self) -> Processes | None:
        """Who takes part (None: this process alone). Raises `UserError` for a bad value."""
        given = (self.coordinator, self.num_processes, self.process_id)
        if self.distributed:
            return find_processes(*given, os.environ)
        if given != (None, None, None):
            raise UserError("--coordinator, --num-processes, --process-id: need --distributed")
        return None


@dataclasses.dataclass(frozen=True)
class LaunchSettings:
    """Run a distributed command in several processes of this machine.

    optdyn launch --processes 4 -- train --task rosenbrock --out runs/one
    """

    processes: int = integer(2, "processes to start", maximum=LARGEST_LAUNCH)


@dataclasses.dataclass(frozen=True)
class EngineSettings:
    """Many workers."""

    engine: str = choice("local", "what does the chunks of work: this process, or Ray", ENGINES)
    address: str | None = option(
        None, "Ray cluster to join, such as auto or host:6379; none: one on this machine",
        read_engine_address, metavar="ADDRESS",
    )  # fmt: skip

    def start_engine(self) -> Engine:
        """The engine these options describe. Raises `UserError` where there is none."""
        return start_engine(self.engine, self.address)
