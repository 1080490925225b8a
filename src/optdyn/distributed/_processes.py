"""Which process of how many this one is, where they meet, and how all start on one machine."""

from __future__ import annotations

import dataclasses
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence

from optdyn.distributed._watch import LOST_EXIT
from optdyn.errors import UserError, require_positive_int

VARIABLES = {
    "coordinator": "OPTDYN_COORDINATOR",
    "num_processes": "OPTDYN_NUM_PROCESSES",
    "process_id": "OPTDYN_PROCESS_ID",
}
"""The environment variables that stand for arguments which are not given."""

LARGEST_PORT = 65535
SECONDS_BETWEEN_LOOKS = 0.1
ENDING = 150.0
"""Seconds that the first process gets to save and end by itself, once one has failed."""
FAREWELL = 10.0
"""Seconds that the others get, once the first has ended."""


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
    given = {"coordinator": coordinator, "num_processes": num_processes, "process_id": process_id}
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


def launch(
    command: Sequence[str], count: int, noted: Callable[[], int | None] = lambda: None
) -> tuple[int, str] | None:
    """Run ``command`` ``count`` times at once, each with its place in environment variables.

    A signal in ``noted`` is passed on to all. Once a process has failed, those
    that do not end by themselves within `ENDING` seconds are killed.
    Returns the exit code of the first process that failed, with one line on it
    (None: none did).
    """
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    shared = {VARIABLES["coordinator"]: f"127.0.0.1:{port}", VARIABLES["num_processes"]: str(count)}
    children = [
        subprocess.Popen(
            command,
            env={**os.environ, **shared, VARIABLES["process_id"]: str(index)},
            stdin=subprocess.DEVNULL,
        )
        for index in range(count)
    ]
    try:
        return _attend(children, noted)
    finally:
        for child in children:
            if child.poll() is None:
                child.kill()
                child.wait()


def _attend(
    children: list[subprocess.Popen], noted: Callable[[], int | None]
) -> tuple[int, str] | None:
    first: tuple[int, int] | None = None
    passed_on = False
    deadline = float("inf")
    ended = False
    while not ended and time.monotonic() < deadline:
        ended = all(child.poll() is not None for child in children)
        signum = noted()
        if signum is not None and not passed_on:
            passed_on = True
            deadline = time.monotonic() + ENDING
            for child in children:
                child.send_signal(signum)
        failed = [(i, child.returncode) for i, child in enumerate(children) if child.poll()]
        if failed and first is None:
            # A process that lost another is not what went wrong.
            first = next((f for f in failed if f[1] != LOST_EXIT), failed[0])
        if failed:
            seconds = ENDING if children[0].poll() is None else FAREWELL
            deadline = min(deadline, time.monotonic() + seconds)
        if not ended:
            time.sleep(SECONDS_BETWEEN_LOOKS)
    if first is None:
        return None
    index, code = first
    how = f"ended with exit code {code}"
    if code < 0:
        how = f"was ended by {signal.Signals(-code).name}"
    return code, f"process {index} of {len(children)} {how}"
