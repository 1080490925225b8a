"""What a command prints: its result on standard output, for people or for scripts."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from optdyn.runs._plain import to_plain

if TYPE_CHECKING:
    from optdyn.cli._options import OutputOptions


@dataclasses.dataclass(frozen=True)
class Result:
    """What a command found: an object for ``--json`` (see `to_plain`), lines for people."""

    values: dict[str, Any]
    lines: list[str]


def present(options: OutputOptions, work: Callable[[], Result]) -> None:
    """Do ``work`` and print its result; whatever it prints itself is progress and messages."""
    with _messages(options):
        result = work()
    if options.json:
        print(json.dumps(to_plain(result.values), indent=2, allow_nan=False))
    elif result.lines:
        print("\n".join(result.lines))


@contextlib.contextmanager
def _messages(options: OutputOptions) -> Iterator[None]:
    """Where messages go: to standard output, but aside when that holds JSON, and nowhere if quiet.

    For code in other threads and libraries too: they all print to `sys.stdout`.
    """
    with contextlib.ExitStack() as stack:
        if options.quiet:
            nowhere = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
        elif options.json:
            stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        yield
