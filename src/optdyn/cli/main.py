"""The command ``optdyn``: finds the subcommand, and turns errors into one line."""

from __future__ import annotations

import importlib
import os
import shlex
import signal
import sys

from optdyn.errors import UserError
from optdyn.experiments.interrupts import Interrupted

COMMANDS = {
    "train": "meta-train a learned optimizer",
    "search-lr": "search the meta learning rate at random",
    "tune": "tune a baseline by random search",
    "evaluate": "compare a run's optimizers on unseen problems",
    "analyze": "take an optimizer apart: a run's stages, or any one optimizer",
    "reproduce": "do the whole study, from nothing to the report",
    "report": "write a run's report",
    "export": "copy a run's weights and search tables to where they ship from",
}
BAD_INPUT = 2
INTERRUPTED = 128


def main(argv: list[str] | None = None) -> int:
    """Run the command line ``argv`` (default: the process's) and return its exit code.

    0: done; 2: bad input, told in one line on standard error; 130 or 143:
    stopped by SIGINT or SIGTERM.
    """
    arguments = sys.argv[1:] if argv is None else argv
    try:
        _dispatch(arguments)
    except UserError as error:
        return _complain(str(error))
    except OSError as error:
        return _complain(f"{error.filename or 'system'}: {error.strerror or error}")
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return _complain("--units: out of memory (lower it or --batch-size, or set --chunk)")
    except KeyboardInterrupt:
        print("optdyn: interrupted", file=sys.stderr)
        return INTERRUPTED + signal.SIGINT
    except Interrupted as error:
        code = INTERRUPTED + error.signum
        again = shlex.join(["optdyn", *arguments])
        print(f"optdyn: {error}; to go on: {again}", file=sys.stderr, flush=True)
        if argv is None:
            sys.stdout.flush()
            os._exit(code)  # the interpreter would wait for abandoned computations
        return code
    return 0


def _dispatch(arguments: list[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return
    command, *rest = arguments
    if command not in COMMANDS:
        raise UserError(f"command: unknown value {command!r} (allowed: {', '.join(COMMANDS)})")
    module = importlib.import_module(f"optdyn.cli.{command.replace('-', '_')}")
    try:
        module.command(rest)
    except SystemExit:  # argparse leaves this way once it has printed the help
        return


def _usage() -> str:
    lines = [f"  {name:<10} {summary}" for name, summary in COMMANDS.items()]
    return "\n".join(
        [
            "usage: optdyn COMMAND [OPTIONS]",
            "",
            "Optimizers as dynamical systems: learn them, tune their rivals, take them apart.",
            "",
            *lines,
            "",
            "optdyn COMMAND --help tells a command's options. Start with: optdyn reproduce",
        ]
    )


def _complain(message: str) -> int:
    print(f"optdyn: error: {' '.join(message.split())}", file=sys.stderr)
    return BAD_INPUT


if __name__ == "__main__":
    sys.exit(main())
