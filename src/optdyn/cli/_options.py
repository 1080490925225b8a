"""Command-line options declared as fields of frozen dataclasses.

A field made by `option` becomes ``--field-name``. Every value is checked as it
is parsed, so that a bad one is reported under the name of its option.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
import shlex
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from optdyn.cli._examples import told
from optdyn.errors import LARGEST_INTEGER, LARGEST_NUMBER, UserError

PLAIN_NUMBER = re.compile(r"[+\-.A-Za-z0-9]+")

S = TypeVar("S")
N = TypeVar("N", int, float)


def option(
    default: Any,
    help: str,
    parse: Callable[[str], Any],
    *,
    metavar: str | None = None,
    choices: Collection[str] | None = None,
    repeat: bool = False,
) -> Any:
    """A field with its default, its line of help and the function that reads its text.

    ``repeat``: the option, a ``name=value``, may be given several times, the pairs
    making a tuple.
    """
    metadata = {
        "help": help, "parse": parse, "metavar": metavar, "choices": choices, "repeat": repeat
    }  # fmt: skip
    return dataclasses.field(default=default, metadata=metadata)


def choice(default: str | None, help: str, allowed: Collection[str]) -> Any:
    """A field that takes one of ``allowed``."""

    def parse(text: str) -> str:
        if text not in allowed:
            raise UserError(f"unknown value {text!r} (allowed: {', '.join(allowed)})")
        return text

    return option(default, help, parse, choices=list(allowed))


def integer(
    default: int | None, help: str, minimum: int = 1, maximum: int = LARGEST_INTEGER
) -> Any:
    """A field that takes an integer from ``minimum`` to ``maximum``."""

    def parse(text: str) -> int:
        value = read_number(int, text)
        if value is None or not minimum <= value <= maximum:
            common = maximum == LARGEST_INTEGER and (value is None or value < minimum)
            upper = "" if common else f" and <= {maximum}"
            raise UserError(f"{_short(text)} is not allowed (an integer >= {minimum}{upper})")
        return value

    return option(default, help, parse, metavar="INT")


def number(default: float | None, help: str, *, inclusive: bool = False) -> Any:
    """A field that takes a finite number above zero (or zero too, when ``inclusive``)."""

    def parse(text: str) -> float:
        value = read_number(float, text)
        if value is None or not 0.0 <= value <= LARGEST_NUMBER or (value == 0.0 and not inclusive):
            sign = ">=" if inclusive else ">"
            raise UserError(f"{_short(text)} is not allowed (a finite number {sign} 0)")
        return value

    return option(default, help, parse, metavar="NUMBER")


def read_number(kind: type[N], text: str) -> N | None:
    """``text`` as a number, None where it is not one as numbers are usually written.

    Python would also take underscores, spaces around it, and other scripts' digits.
    """
    try:
        return kind(text) if PLAIN_NUMBER.fullmatch(text) else None
    except ValueError:
        return None


def path(default: Path | None, help: str) -> Any:
    """A field that takes the path of a file or folder."""

    def parse(text: str) -> Path:
        if not text or "\0" in text:
            raise UserError(f"{_short(text)} is not allowed (a path)")
        return Path(text)

    return option(default, help, parse, metavar="PATH")


def several(default: tuple[Any, ...], help: str, each: Any) -> Any:
    """A field that takes values of the field ``each``, between commas, as a tuple."""
    metadata = each.metadata

    def parse(text: str) -> tuple[Any, ...]:
        return tuple(metadata["parse"](part) for part in text.split(","))

    metavar = f"{metadata['metavar'] or 'NAME'},..."
    return option(default, help, parse, metavar=metavar, choices=metadata["choices"])


def switch(help: str) -> Any:
    """A field that is false unless its option is given."""
    return dataclasses.field(default=False, metadata={"help": help, "parse": None})


def parse_settings(kind: type[S], command: str, argv: list[str]) -> S:
    """The settings that ``argv`` gives; prints help and leaves (`SystemExit`) on ``--help``.

    Raises `UserError` in the form ``<option>: <what> (<allowed>)``.
    """
    parser = _Parser(
        usage=f"optdyn {command} [OPTIONS]",
        description=inspect.getdoc(kind),
        epilog=told(command),
        allow_abbrev=False,
        add_help=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    groups: dict[type, Any] = {}
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        owner = next(
            c for c in reversed(kind.__mro__) if field.name in vars(c).get("__annotations__", ())
        )
        if owner not in groups:
            title = "options" if owner is kind else (owner.__doc__ or "").splitlines()[0]
            groups[owner] = parser.add_argument_group(title.rstrip("."))
        _add(groups[owner], field)
    parser.add_argument_group("help").add_argument(
        "-h", "--help", action="help", help="show this message and exit"
    )
    parsed, unknown = parser.parse_known_args(_joined(argv))
    if unknown:
        raise UserError(f"{_short(unknown[0])}: unknown option (see optdyn {command} --help)")
    return kind(
        **{name: tuple(v) if isinstance(v, list) else v for name, v in vars(parsed).items()}
    )


def command_line(command: str, settings: Any) -> str:
    """The command that gives ``settings``; options at their default are left out."""
    words = ["optdyn", command]
    for field in dataclasses.fields(settings):
        value, flag = getattr(settings, field.name), f"--{field.name.replace('_', '-')}"
        if value == field.default:
            continue
        if field.metadata["parse"] is None:
            words.append(flag)
        elif field.metadata["repeat"]:
            words += [word for name, item in value for word in (flag, f"{name}={item}")]
        else:
            words += [flag, _text(value)]
    return shlex.join(words)


class _Parser(argparse.ArgumentParser):
    """An argparse parser whose complaints are `UserError`s."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message.removeprefix("argument "))

    def _print_message(self, message: str, file: Any = None) -> None:
        # argparse's own is silent where the disk refuses.
        print(message, end="", file=file or sys.stdout)


def _add(group: Any, field: dataclasses.Field[Any]) -> None:
    flag, metadata = f"--{field.name.replace('_', '-')}", field.metadata
    if metadata["parse"] is None:
        group.add_argument(flag, action="store_true", help=metadata["help"])
        return
    default = "none" if field.default is None or field.default == () else _text(field.default)
    choices = metadata["choices"]
    allowed = f" [{', '.join(choices)}]" if choices else ""
    group.add_argument(
        flag,
        dest=field.name,
        default=[] if metadata["repeat"] else field.default,
        type=_reported(metadata["parse"]),
        action="append" if metadata["repeat"] else "store",
        metavar=metadata["metavar"] or "NAME",
        help=f"{metadata['help']}{allowed} (default: {default})".replace("%", "%%"),
    )


def _reported(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """``parse`` raising what argparse reports together with the option's name."""

    def typed(text: str) -> Any:
        try:
            return parse(text)
        except UserError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return typed


def _joined(argv: list[str]) -> list[str]:
    """``argv`` with negative numbers joined to their options: argparse knows few by themselves."""
    joined: list[str] = []
    for text in argv:
        name, _, value = text.partition("=")
        if name.startswith("--") and value == "--":
            # Python 3.11's argparse would give the option no value at all.
            raise UserError(f"{name}: '--' is not allowed (a value)")
        if text.startswith("-") and _is_number(text) and joined and joined[-1].startswith("--"):
            joined[-1] += f"={text}"
        else:
            joined.append(text)
    return joined


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _text(value: Any) -> str:
    """A value as its option is given it."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
