"""The command ``optdyn``: finds the subcommand, and turns errors into one line."""

from __future__ import annotations

import contextlib
import importlib
import os
import shlex
import shutil
import signal
import sys

import optdyn
from optdyn.cli import _streams as streams
from optdyn.cli._devices import use_large_pages
from optdyn.distributed._group import unfinished
from optdyn.errors import UserError
from optdyn.runs._interrupts import Interrupted, noted_signals, raised_signals

PROGRAM = "optdyn"
COMMANDS = {
    "train": "meta-train a learned optimizer",
    "launch": "run one command in several processes of this machine",
    "search-lr": "search the meta learning rate at random",
    "sweep": "meta-train over tasks, cells, sizes, seeds and learning rates",
    "tune": "tune a baseline by random search",
    "evaluate": "compare a run's optimizers on unseen problems",
    "analyze": "take an optimizer apart: a run's stages, or any one optimizer",
    "reproduce": "do the whole study, from nothing to the report",
    "distill": "fit readable optimizers to a run's learned one",
    "report": "write a run's report",
    "export": "copy a run's weights, tables and fits to where they ship from",
    "doctor": "check this installation",
    "completion": "print a completion script for bash, zsh or fish",
}
OUT_OF_MEMORY = (
    "out of memory (lower --units, --batch-size, --problems, --unroll-length or the task's size, "
    "or set --chunk)"
)
BAD_INPUT = 2
INTERRUPTED = 128
"""Added to the number of the signal, as shells do."""


def main(argv: list[str] | None = None) -> int:
    """Run the command line ``argv`` (default: the process's) and return its exit code.

    0: done; 1: `optdyn doctor` found a fault; 2: bad input, told in one line on
    standard error; 130 or 143: stopped by SIGINT or SIGTERM; 141: the reader of
    the output has gone; 75: another process of the training was lost.
    """
    if argv is not None:
        return _run(argv, PROGRAM)
    streams.open_closed()
    arguments = sys.argv[1:]
    if arguments and arguments[0] in COMMANDS:
        use_large_pages()
    code = _run(arguments, _program())
    streams.settle()
    if code != INTERRUPTED + signal.SIGPIPE and (code > BAD_INPUT or unfinished()):
        # The interpreter would wait for abandoned computations, and for other processes.
        os._exit(code)
    return code


def _run(arguments: list[str], program: str) -> int:
    try:
        with raised_signals("stopped; what was finished is saved"):
            code = _dispatch(arguments)
            sys.stdout.flush()
            return code
    except BrokenPipeError:
        return INTERRUPTED + signal.SIGPIPE
    except UserError as error:
        return _complain(str(error))
    except OSError as error:
        return _complain(f"{error.filename or 'system'}: {error.strerror or error}")
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return _complain(OUT_OF_MEMORY)
    except Interrupted as error:
        again = shlex.join([program, *arguments])
        with contextlib.suppress(OSError):
            print(f"optdyn: {error}; to go on: {again}", file=sys.stderr, flush=True)
        return error.code


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return 0
    if arguments == ["--version"]:
        print(f"{PROGRAM} {optdyn.__version__}")
        return 0
    command, *rest = arguments
    if command not in COMMANDS:
        raise UserError(f"command: unknown value {command!r} (allowed: {', '.join(COMMANDS)})")
    with noted_signals():  # NumPy and JAX print an exception that comes while they load
        module = importlib.import_module(f"optdyn.cli._{command.replace('-', '_')}")
    try:
        return module.command(rest) or 0
    except SystemExit:  # argparse leaves this way once it has printed the help
        return 0


def _program() -> str:
    """How this program is called from here: by its name, or by its path if that is not found."""
    called = sys.argv[0]
    found = shutil.which(PROGRAM)
    same = found is not None and os.path.exists(called) and os.path.samefile(found, called)
    return PROGRAM if same else called


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
            "optdyn COMMAND --help tells a command's options, with examples; optdyn --version.",
            "Start with: optdyn reproduce",
            "",
            "Results go to standard output (with --json as one JSON object, and progress to",
            "standard error). A command that was stopped goes on where it was left when repeated.",
            "Exit codes: 0 done, 1 optdyn doctor found a fault, 2 bad input (one line on standard",
            "error), 130 or 143 stopped by SIGINT (Ctrl-C) or SIGTERM, 75 lost another process.",
        ]
    )


def _complain(message: str) -> int:
    with contextlib.suppress(OSError):  # a closed or full standard error is no other fault
        print(f"optdyn: error: {' '.join(message.split())}", file=sys.stderr)
    return BAD_INPUT


if __name__ == "__main__":
    sys.exit(main())
