"""The command ``optdyn``: finds the subcommand, and turns errors into one line."""

from __future__ import annotations

import importlib
import os
import shlex
import sys

from optdyn.cli.devices import use_large_pages
from optdyn.distributed.group import unfinished
from optdyn.errors import UserError
from optdyn.experiments.interrupts import Interrupted, raised_signals

COMMANDS = {
    "train": "meta-train a learned optimizer",
    "launch": "run one command in several processes of this machine",
    "search-lr": "search the meta learning rate at random",
    "sweep": "meta-train over tasks, cells, sizes, seeds and learning rates",
    "tune": "tune a baseline by random search",
    "evaluate": "compare a run's optimizers on unseen problems",
    "analyze": "take an optimizer apart: a run's stages, or any one optimizer",
    "reproduce": "do the whole study, from nothing to the report",
    "report": "write a run's report",
    "export": "copy a run's weights and search tables to where they ship from",
}
BAD_INPUT = 2


def main(argv: list[str] | None = None) -> int:
    """Run the command line ``argv`` (default: the process's) and return its exit code.

    0: done; 2: bad input, told in one line on standard error; 130 or 143:
    stopped by SIGINT or SIGTERM; 75: another process of the training was lost.
    """
    if argv is not None:
        return _run(argv)
    arguments = sys.argv[1:]
    if arguments and arguments[0] in COMMANDS:
        use_large_pages()
    code = _run(arguments)
    if code > BAD_INPUT or unfinished():
        # The interpreter would wait for abandoned computations, and for other processes.
        sys.stdout.flush()
        os._exit(code)
    return code


def _run(arguments: list[str]) -> int:
    try:
        with raised_signals("stopped; what was finished is saved"):
            _dispatch(arguments)
    except UserError as error:
        return _complain(str(error))
    except OSError as error:
        return _complain(f"{error.filename or 'system'}: {error.strerror or error}")
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return _complain("--units: out of memory (lower it or --batch-size, or set --chunk)")
    except Interrupted as error:
        again = shlex.join(["optdyn", *arguments])
        print(f"optdyn: {error}; to go on: {again}", file=sys.stderr, flush=True)
        return error.code
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
