"""Start several processes of one command on this machine, and end them together."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence

from optdyn.distributed._processes import VARIABLES
from optdyn.distributed._watch import LOST_EXIT

SECONDS_BETWEEN_LOOKS = 0.1

ENDING = 150.0
"""Seconds that the first process gets to save and end by itself, once one has failed."""

FAREWELL = 10.0
"""Seconds that the others get, once the first has ended."""


def launch(
    command: Sequence[str], count: int, noted: Callable[[], int | None] = lambda: None
) -> tuple[int, str] | None:
    """Run ``command`` ``count`` times at once, each with its place in environment variables.

    A signal in ``noted`` is passed on to all. Once a process has failed, those
    that do not end by themselves within `ENDING` seconds are killed.
    Returns the exit code of the first process that failed, with one line on it
    (None: none did).
    """
    shared = {
        VARIABLES["coordinator"]: f"127.0.0.1:{_free_port()}",
        VARIABLES["num_processes"]: str(count),
    }
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
    return code, f"process {index} of {len(children)} {_how(code)}"


def _how(code: int) -> str:
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])
