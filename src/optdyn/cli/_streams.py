"""Standard output and standard error, as whoever started the command left them."""

from __future__ import annotations

import codecs
import io
import os
import sys

LAST_STANDARD = 2


def open_closed() -> None:
    """Lead closed standard streams nowhere, and let open ones take any text.

    Else a file that is opened later would take a closed stream's number, and get what
    libraries tell. Text may hold symbols that the encoding lacks, and paths whose bytes
    are no text.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= LAST_STANDARD:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    sys.stdout = sys.stdout or _nowhere()
    sys.stderr = sys.stderr or _nowhere()
    if isinstance(sys.stdout, io.TextIOWrapper):
        unicode = codecs.lookup(sys.stdout.encoding).name == "utf-8"
        sys.stdout.reconfigure(errors="surrogateescape" if unicode else "backslashreplace")


def settle() -> None:
    """Flush both streams; what one refuses goes nowhere, or Python would complain at its end."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _nowhere() -> io.TextIOWrapper:
    return os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8")
