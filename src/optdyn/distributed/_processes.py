"""Which process of how many this one is, and where they meet."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from optdyn.errors import UserError, require_positive_int

VARIABLES = {
    "coordinator": "OPTDYN_COORDINATOR",
    "num_processes": "OPTDYN_NUM_PROCESSES",
    "process_id": "OPTDYN_PROCESS_ID",
}
"""The environment variables that stand for arguments which are not given."""

LARGEST_PORT = 65535


@dataclasses.dataclass(frozen=True)
class Processes:
    """Process number ``process_id`` of ``num_processes``, which meet at ``coordinator``.

    ``coordinator``: ``host:port`` of process 0, as the others reach it.
    Raises `UserError` for a value that cannot be.
    """

    coordinator: str
    num_processes: int
    process_id: int

    def __post_init__(self) -> None:
        require_positive_int("--num-processes", self.num_processes)
        require_positive_int("--process-id", self.process_id, minimum=0)
        if self.process_id >= self.num_processes:
            raise UserError(
                f"--process-id: {self.process_id} is not allowed "
                f"(an integer below --num-processes {self.num_processes})"
            )
        try:
            read_address(self.coordinator)
        except UserError as error:
            raise UserError(f"--coordinator: {error}") from None

    @property
    def host(self) -> str:
        """The host of process 0."""
        return self.coordinator.rpartition(":")[0].strip("[]")


def read_address(text: str) -> str:
    """``text``, when it is ``host:port``. Raises `UserError` for anything else."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or len(port) > 5 or not 0 < int(port) <= LARGEST_PORT:
        raise UserError(f"{text[:60]!r} is not allowed (host:port)")
    return text


def find_processes(
    coordinator: str | None,
    num_processes: int | None,
    process_id: int | None,
    environment: Mapping[str, str],
) -> Processes:
    """The arguments, with `VARIABLES` of ``environment`` in the place of those that are None.

    Raises `UserError` for one that neither gives.
    """
    given = {
        "coordinator": coordinator,
        "num_processes": num_processes,
        "process_id": process_id,
    }
    found: dict[str, str | int] = {}
    for name, value in given.items():
        flag, variable = f"--{name.replace('_', '-')}", VARIABLES[name]
        if value is None and variable not in environment:
            raise UserError(f"{flag}: needed with --distributed (or set {variable})")
        found[name] = environment[variable] if value is None else value
    return Processes(
        str(found["coordinator"]),
        _integer("num_processes", found["num_processes"]),
        _integer("process_id", found["process_id"]),
    )


def _integer(name: str, value: str | int) -> int:
    try:
        return int(value)
    except ValueError:
        raise UserError(f"{VARIABLES[name]}: {value!r} is not allowed (an integer)") from None
