"""The command ``optdyn``: finds the subcommand, and turns errors into one line."""

from __future__ import annotations

import contextlib
import inspect
import io
import os
import shlex
import shutil
import signal
import sys
from collections.abc import Callable
from typing import IO, Any

from cyclopts import App, ArgumentCollection, CycloptsError, Parameter
from rich.console import Console

import optdyn
from optdyn.cli import _streams as streams
from optdyn.cli._commands import COMMANDS, examples, module_of
from optdyn.cli._devices import use_large_pages
from optdyn.cli._help import Paragraphs
from optdyn.cli._reading import in_one_line, option_name, read
from optdyn.cli._settings import complete
from optdyn.distributed._group import unfinished
from optdyn.distributed._interrupts import Interrupted, noted_signals, raised_signals
from optdyn.errors import UserError

PROGRAM = "optdyn"
OUT_OF_MEMORY = (
    "out of memory (lower --units, --batch-size, --problems, --unroll-length or the task's size, "
    "or set --chunk)"
)
DESCRIPTION = "Train optimizers, tune others to compare with, and read both as dynamical systems."
EPILOGUE = """\
optdyn COMMAND --help lists the options of a command, with examples. Start with: optdyn reproduce

Results go to standard output (with --json as one JSON object, and progress to standard
error). Repeat a command that was stopped: it goes on from there.
Exit codes: 0 done, 1 optdyn doctor found a fault, 2 bad input (one line on standard
error), 130 or 143 stopped by SIGINT (Ctrl-C) or SIGTERM, 75 lost another process."""
HELP_WIDTH = 100
BAD_INPUT = 2
INTERRUPTED = 128
"""Added to the number of the signal, as shells do."""


def main(argv: list[str] | None = None) -> int:
    """Run the command line ``argv`` (default: the process's) and return its exit code.

    0: done; 1: `optdyn doctor` found a fault; 2: bad input, in one line on
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
        again = f"{program} {shlex.join(arguments)}"
        with contextlib.suppress(OSError):
            print(f"optdyn: {error}; to go on: {again}", file=sys.stderr, flush=True)
        return error.code


def _dispatch(arguments: list[str]) -> int:
    help_text = io.StringIO()  # rich would end the process where the reader has gone
    with noted_signals():  # NumPy and JAX print an exception that comes while they load
        command, bound = parse(arguments, help_text)
    code = command(*bound.args, **bound.kwargs)
    print(help_text.getvalue(), end="")
    return code or 0


def parse(
    arguments: list[str], help_text: IO[str] | None = None
) -> tuple[Callable[..., Any], inspect.BoundArguments]:
    """The function that a command line calls, and with what.

    Where that is to show help, it writes to ``help_text``. Raises `UserError`.
    """
    app, options = make_app(help_text), ArgumentCollection()
    app.config = (lambda app, commands, found: options.extend(found), complete)
    try:
        command, bound, _ = app.parse_args(arguments, exit_on_error=False, print_error=False)
    except (CycloptsError, UserError) as error:
        raise UserError(in_one_line(error, options, next(iter(arguments), ""))) from error
    return command, bound


def make_app(help_text: IO[str] | None = None) -> App:
    """The command line: each command's module is loaded when the command is asked for."""
    width = min(HELP_WIDTH, shutil.get_terminal_size((HELP_WIDTH, 0)).columns)
    app = App(
        name=PROGRAM,
        version=f"{PROGRAM} {optdyn.__version__}",
        help=DESCRIPTION,
        help_epilogue=EPILOGUE,
        help_format="plaintext",
        help_formatter=Paragraphs(),
        console=Console(file=help_text, width=width, highlight=False),
        default_parameter=Parameter(
            converter=read,
            name_transform=option_name,
            negative=(),
            allow_repeating=True,
            json_dict=False,
            json_list=False,
        ),
    )
    for order, (name, summary) in enumerate(COMMANDS.items()):
        app.command(
            module_of(name),
            name=name,
            help=summary,
            sort_key=order,
            help_epilogue=examples(name),
        )
    return app


def _program() -> str:
    """How this program is called from here: by its name, or by its path if that is not found."""
    called = sys.argv[0]
    if os.path.basename(called) == "__main__.py":
        return f"{os.path.basename(sys.executable)} -m {PROGRAM}"
    found = shutil.which(PROGRAM)
    same = found is not None and os.path.exists(called) and os.path.samefile(found, called)
    return PROGRAM if same else shlex.quote(called)


def _complain(message: str) -> int:
    with contextlib.suppress(OSError):  # a closed or full standard error is no other fault
        print(f"optdyn: error: {' '.join(message.split())}", file=sys.stderr)
    return BAD_INPUT


if __name__ == "__main__":
    sys.exit(main())
