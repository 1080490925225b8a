"""How the text of an option becomes a value, and how a complaint about it reads.

Cyclopts finds the options in the library's own dataclasses. What a value may be is said by
those dataclasses: text that is no number reaches them as text, and they refuse it by name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_origin

from cyclopts import CycloptsError, Parameter
from cyclopts.exceptions import (
    CoercionError,
    MissingArgumentError,
    UnknownCommandError,
    UnusedCliTokensError,
    ValidationError,
)

from optdyn.errors import (
    LARGEST_INTEGER,
    UserError,
    require_choice,
    require_number,
    require_positive_int,
    shown,
)

if TYPE_CHECKING:
    from cyclopts import ArgumentCollection, Token

N = TypeVar("N", int, float)

PLAIN_NUMBER = re.compile(r"[+\-.A-Za-z0-9]+")
OPTION_NAMES = {
    "encoding": "*",
    "objective": "*",
    "kind": "encoding",
    "scale": "input-scale",
    "low": "lowest",
    "high": "highest",
    "num_steps": "unroll-length",
}
"""Fields of the library whose option has another name; ``*``: its fields are options themselves."""
LARGEST = {
    "--units": 2**15,
    "--batch-size": 10**6,
    "--meta-steps": 10**9 - 1,
    "--problems": 10**6,
    "--rescore-problems": 10**6,
    "--memory-budget": 2**50,
}
"""Beyond these sizes XLA ends the process instead of raising an error, or files have no name."""


def option_name(field: str) -> str:
    """The name of a field's option: ``num_meta_steps`` is ``meta-steps``."""
    return OPTION_NAMES.get(field) or field.removeprefix("num_").replace("_", "-")


def read(hint: Any, tokens: Sequence[Token]) -> Any:
    """The value that ``tokens`` give an option of the type ``hint``."""
    if get_origin(hint) is tuple:
        each = get_args(hint)[0]
        return tuple(_read(each, part, t) for t in tokens for part in t.value.split(","))
    return _read(hint, tokens[-1].value, tokens[-1])


def _read(hint: Any, text: str, token: Token) -> Any:
    kinds = get_args(hint) or (hint,)
    if type(None) in kinds and text == "none":
        return None
    if bool in kinds:
        raise UserError(f"{shown(text)} is not allowed (a switch takes no value)")
    if Path in kinds:
        if not text or "\0" in text:
            raise UserError(f"{shown(text)} is not allowed (a path)")
        return Path(text)
    for kind in (int, float):
        if kind in kinds:
            number = read_number(kind, text)
            largest = LARGEST.get(token.keyword or "", LARGEST_INTEGER)
            if kind is int and number is not None and number > largest:
                raise UserError(f"{shown(text)} is not allowed (an integer <= {largest})")
            return text if number is None else number
    return text


def read_number(kind: type[N], text: str) -> N | None:
    """``text`` as a number, None where it is not one as numbers are usually written.

    Python would also take underscores, spaces around it, and other scripts' digits.
    """
    try:
        return kind(text) if PLAIN_NUMBER.fullmatch(text) else None
    except ValueError:
        return None


def read_pairs(texts: Iterable[str], largest: float) -> dict[str, Any]:
    """Options of a task: ``NAME=VALUE`` with a number, true, false, a JSON list, or text.

    Raises `UserError` for other text, a name given twice, and a number beyond ``largest``.
    """
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise UserError(f"{shown(text)} is not allowed (NAME=VALUE, such as n=10)")
        if name in found:
            raise UserError(f"{name}: is given twice (once)")
        found[name] = _pair_value(value)
        if isinstance(found[name], int | float) and not abs(found[name]) <= largest:
            raise UserError(f"{name}: {shown(value)} is not allowed (at most {largest})")
    return found


def _pair_value(text: str) -> Any:
    whole = read_number(int, text)
    number = read_number(float, text) if whole is None else whole
    if number is not None:
        return number
    if text in ("true", "false") or text.startswith("["):
        try:
            value = json.loads(text)
        except ValueError:
            return text
        return tuple(value) if isinstance(value, list) else value
    return text


def checked(check: Callable[[Any], object]) -> Parameter:
    """An option whose value, where it has one, ``check`` refuses by a `UserError`."""

    def validate(kind: Any, value: Any) -> None:
        if value is not None:
            check(value)

    return Parameter(validator=validate)


def whole(minimum: int = 1, maximum: int = LARGEST_INTEGER) -> Parameter:
    """An option that takes an integer from ``minimum`` to ``maximum``."""
    return checked(lambda value: require_positive_int("", value, minimum, maximum))


def positive() -> Parameter:
    """An option that takes a finite number above zero."""
    return checked(lambda value: require_number("", value))


def one_of(names: Iterable[str]) -> Parameter:
    """An option that takes one of ``names``."""
    return checked(lambda value: require_choice("", value, list(names)))


def shown_default(value: Any) -> str | None:
    """A default as the help shows it, and as it may be given; None where there is none to show."""
    if value is None or value is False or value == ():
        return None
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def in_one_line(error: Exception, options: ArgumentCollection, command: str) -> str:
    """What is wrong with a command line: ``<option>: <what> (<allowed>)``."""
    if isinstance(error, UnknownCommandError | UnusedCliTokensError):
        word = shown((error.unused_tokens or ("",))[0])
        if isinstance(error, UnknownCommandError):
            return f"command: unknown value {word} (see optdyn --help)"
        return f"{word}: is not expected (see optdyn {command} --help)"
    if isinstance(error, CoercionError | ValidationError) and error.argument is not None:
        what = error.exception_message if isinstance(error, ValidationError) else error.msg
        return f"{error.argument.name}: {str(what).removeprefix(': ')}"
    if isinstance(error, MissingArgumentError) and error.argument is not None:
        return f"{error.argument.name}: expected one argument"
    if isinstance(error, CycloptsError):
        return f"{error} (see optdyn {command} --help)"
    field, colon, rest = str(error).partition(": ")
    field = field.rpartition(".")[2]
    names = [argument.name for argument in options if argument.field_info.name == field]
    return f"{names[0]}: {rest}" if colon and names else str(error)
