"""Notice the loss of a process, by a connection from each one to the first.

The kernel closes a connection with its process, so that a process that ends is
missed at once. A host or a network that goes leaves it open: whoever says
nothing for `SILENCE` seconds is taken for lost. The first process tells the
others, and each ends at once; the first may take `GRACE` seconds to save.
"""

from __future__ import annotations

import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import IO

SILENCE = 20.0
"""Seconds without a word after which a process is taken for lost."""

GRACE = 120.0
"""Seconds for the first process to save, once another is lost."""

BEAT = 1.0
CONNECTING = 60.0
LOST_EXIT = 75
"""The exit code of a process whose job has lost another one (EX_TEMPFAIL: try again)."""

ALIVE, DONE, LOST = b"alive\n", b"done\n", b"lost "
LOOPBACK = ("localhost", "127.0.0.1", "::1")


def end_at_once(message: str | None) -> None:
    """Leave the process with `LOST_EXIT`, whatever its other threads wait for."""
    if message is not None:
        print(f"optdyn: error: {message}", file=sys.stderr, flush=True)
    os._exit(LOST_EXIT)


class _Connection:
    """One end of a connection: beats on it, and what comes in."""

    def __init__(self, connected: socket.socket) -> None:
        connected.settimeout(SILENCE)
        self._socket = connected
        self.lines: IO[bytes] = connected.makefile("rb")

    def send(self, line: bytes) -> bool:
        """Whether ``line`` could be sent."""
        try:
            self._socket.sendall(line)
        except OSError:
            return False
        return True

    def listen(self, on_line: Callable[[bytes], None]) -> str:
        """Give each line to ``on_line``; returns why there are no more."""
        try:
            for line in self.lines:
                on_line(line)
        except TimeoutError:
            return f"has said nothing for {SILENCE:g} s"
        except OSError:
            pass
        return "has ended"


class Hub:
    """The first process's side.

    ``lost`` becomes one line about the first process that went before `finish`.
    """

    def __init__(self, host: str, count: int) -> None:
        self.token = secrets.randbits(31)
        self.lost: str | None = None
        self._noticed = threading.Event()
        self._all_done = threading.Event()
        self._done: set[int] = set()
        self._connections: dict[int, _Connection] = {}
        self._count = count
        if host in LOOPBACK:
            self._server = socket.create_server((host, 0))
        elif socket.has_dualstack_ipv6():
            self._server = socket.create_server(
                ("", 0), family=socket.AF_INET6, dualstack_ipv6=True
            )
        else:
            self._server = socket.create_server(("", 0))
        self.port: int = self._server.getsockname()[1]

    def accept(self) -> None:
        """Wait for the connection of every other process, at most `CONNECTING` seconds."""
        deadline = time.monotonic() + CONNECTING
        while len(self._connections) < self._count - 1:
            self._server.settimeout(max(0.1, deadline - time.monotonic()))
            connection = _Connection(self._server.accept()[0])
            try:
                token, index = map(int, connection.lines.readline(64).split())
            except (OSError, ValueError):
                continue
            if token == self.token:
                self._connections[index] = connection
        self._server.close()
        for index in self._connections:
            threading.Thread(target=self._follow, args=(index,), daemon=True).start()
        threading.Thread(target=self._beat, daemon=True).start()

    def wait_for_loss(self, seconds: float) -> bool:
        """Whether a process is lost, or is within ``seconds``."""
        return self._noticed.wait(seconds)

    def finish(self) -> None:
        """Wait until all have finished, and tell them so."""
        if self._count > 1:
            while not self._all_done.wait(BEAT):
                if self.lost is not None:
                    end_at_once(self.lost)
        self._tell(DONE)

    def _follow(self, index: int) -> None:
        def hear(line: bytes) -> None:
            if line == DONE:
                self._done.add(index)
                if len(self._done) == self._count - 1:
                    self._all_done.set()

        how = self._connections[index].listen(hear)
        if index not in self._done and self.lost is None:
            self.lost = f"process {index} of {self._count} {how}"
            self._tell(LOST + self.lost.encode() + b"\n")
            self._noticed.set()
            time.sleep(GRACE)
            end_at_once(self.lost)

    def _beat(self) -> None:
        while True:
            self._tell(ALIVE)
            time.sleep(BEAT)

    def _tell(self, line: bytes) -> None:
        for connection in self._connections.values():
            connection.send(line)


class Spoke:
    """Another process's side: when any process is lost, this one ends at once."""

    lost: str | None = None

    def __init__(self, host: str, port: int, token: int, index: int) -> None:
        self._connection = _Connection(socket.create_connection((host, port), CONNECTING))
        self._connection.send(f"{token} {index}\n".encode())
        self._finished = threading.Event()
        threading.Thread(target=self._follow, daemon=True).start()
        threading.Thread(target=self._beat, daemon=True).start()

    def wait_for_loss(self, seconds: float) -> bool:
        """Give the thread that listens ``seconds`` to end this process."""
        return self._finished.wait(seconds)

    def finish(self) -> None:
        """Tell that this process has finished, and wait until all have."""
        self._connection.send(DONE)
        self._finished.wait()

    def _follow(self) -> None:
        def hear(line: bytes) -> None:
            if line == DONE:
                self._finished.set()
            elif line.startswith(LOST):
                end_at_once(None)  # the first process tells

        how = self._connection.listen(hear)
        if not self._finished.is_set():
            end_at_once(f"process 0 {how}; start all processes again to go on")

    def _beat(self) -> None:
        while self._connection.send(ALIVE):
            time.sleep(BEAT)
