"""The one error that bad input raises."""

import contextlib
import math
import operator
from typing import Any


class UserError(ValueError):
    """Bad input: its message is one line saying what, where and what is allowed.

    The command line prints the message alone and exits with code 2.
    """


def first_line(error: Exception) -> str:
    """What another's ``error`` says, in one line, to be told in a `UserError`."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def require_choice(name: str, value: object, allowed: list[str]) -> None:
    """Raise `UserError` unless ``value`` is one of ``allowed``."""
    if value not in allowed:
        raise UserError(f"{name}: unknown value {value!r} (allowed: {', '.join(allowed)})")


def require_positive_int(name: str, value: int, minimum: int = 1) -> None:
    """Raise `UserError` unless ``value`` is an integer of at least ``minimum``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise UserError(f"{name}: {value!r} is not allowed (an integer >= {minimum})")


def whole_number(name: str, value: Any, minimum: int = 1) -> int:
    """``value``, of any type of integers, as an int. Raises `UserError` unless >= ``minimum``."""
    with contextlib.suppress(TypeError):
        value = value if isinstance(value, bool) else operator.index(value)
    require_positive_int(name, value, minimum)
    return int(value)


def require_number(
    name: str, value: float, *, minimum: float = 0.0, inclusive: bool = False
) -> None:
    """Raise `UserError` unless ``value`` is finite and above ``minimum``."""
    sign = ">=" if inclusive else ">"
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if (
        not is_number
        or not (minimum <= value < float("inf"))
        or (value == minimum and not inclusive)
    ):
        raise UserError(f"{name}: {value!r} is not allowed (a finite number {sign} {minimum:g})")


def finite_number(name: str, value: Any) -> float:
    """``value`` as a float. Raises `UserError` unless it is one finite number."""
    try:
        number = math.nan if isinstance(value, str | bytes) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"{name}: {value!r} is not allowed (a finite number)")
    return number
