"""What a file's JSON must look like, told once and checked when it is read.

A signature says that a file is as it was written, not that it was written by this version,
or in good faith. A form is a function that raises `UserError`, saying where and what, for a
value that has it not. Lists of numbers have the sizes of named axes: the same name stands
for the same size wherever it is in one file.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from optdyn.errors import UserError

Sizes = dict[str, int]
Form = Callable[[Any, str, Sizes], None]
"""Takes the value, where it is in the file, and the sizes of the axes met so far."""

LONGEST_SHOWN = 40
ONE_MORE = "+1"
"""Ends the name of an axis that is longer by one than the one so named."""


def require_form(path: Path, value: Any, form: Form) -> None:
    """Raise `UserError`, naming the file and the first fault, unless ``value`` has ``form``."""
    try:
        form(value, "", {})
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def anything(value: Any, at: str, sizes: Sizes) -> None:
    """Whatever JSON can hold."""


def number(value: Any, at: str, sizes: Sizes) -> None:
    """A number; null stands for one that is not finite."""
    if not (value is None or _is_number(value)):
        raise _fault(at, value, "a number")


def known(value: Any, at: str, sizes: Sizes) -> None:
    """A number, not null."""
    if not _is_number(value):
        raise _fault(at, value, "a number")


def count(value: Any, at: str, sizes: Sizes) -> None:
    """An integer from 0 on."""
    if type(value) is not int or value < 0:
        raise _fault(at, value, "an integer >= 0")


def flag(value: Any, at: str, sizes: Sizes) -> None:
    """True or false."""
    if not isinstance(value, bool):
        raise _fault(at, value, "true or false")


def text(value: Any, at: str, sizes: Sizes) -> None:
    """A text."""
    if not isinstance(value, str):
        raise _fault(at, value, "a text")


def numbers(*axes: str | int) -> Form:
    """Nested lists of numbers (or null), of one size along each of ``axes``."""
    inner = numbers(*axes[1:]) if len(axes) > 1 else number

    def check(value: Any, at: str, sizes: Sizes) -> None:
        _require_size(value, at, axes[0], sizes)
        if inner is number and all(item is None or _is_number(item) for item in value):
            return
        for place, item in enumerate(value):
            inner(item, f"{at}[{place}]", sizes)

    return check


def rows(form: Form, axis: str | None = None) -> Form:
    """A list, not empty, of values of ``form``."""

    def check(value: Any, at: str, sizes: Sizes) -> None:
        if not isinstance(value, list) or not value:
            raise _fault(at, value, "a list of something")
        if axis is not None:
            _require_size(value, at, axis, sizes)
        for place, item in enumerate(value):
            form(item, f"{at}[{place}]", sizes)

    return check


def table(form: Form) -> Form:
    """An object, of whatever names, with values of ``form``."""

    def check(value: Any, at: str, sizes: Sizes) -> None:
        if not isinstance(value, dict):
            raise _fault(at, value, "an object")
        for name, item in value.items():
            form(item, _inside(at, name), sizes)

    return check


def fields(**forms: Form) -> Form:
    """An object with at least these fields."""

    def check(value: Any, at: str, sizes: Sizes) -> None:
        if not isinstance(value, dict):
            raise _fault(at, value, "an object")
        for name, form in forms.items():
            if name not in value:
                raise UserError(
                    f"{_inside(at, name)}: is missing (made by an earlier version? repeat the work)"
                )
            form(value[name], _inside(at, name), sizes)

    return check


def or_null(form: Form) -> Form:
    """Null, or a value of ``form``."""

    def check(value: Any, at: str, sizes: Sizes) -> None:
        if value is not None:
            form(value, at, sizes)

    return check


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _require_size(value: Any, at: str, axis: str | int, sizes: Sizes) -> None:
    if not isinstance(value, list):
        raise _fault(at, value, "a list")
    if isinstance(axis, int):
        expected = axis
    else:
        extra = int(axis.endswith(ONE_MORE))
        expected = sizes.setdefault(axis.removesuffix(ONE_MORE), len(value) - extra) + extra
    if len(value) != expected:
        raise UserError(f"{at}: has {len(value)} items, not {expected}")


def _fault(at: str, value: Any, allowed: str) -> UserError:
    shown = repr(value)
    short = shown if len(shown) <= LONGEST_SHOWN else f"{shown[:LONGEST_SHOWN]}..."
    return UserError(f"{at or 'content'}: {short} is not {allowed}")


def _inside(at: str, name: str) -> str:
    return f"{at}.{name}" if at else name
