"""The one error that bad input raises."""

import contextlib
import math
import operator
from typing import Any

LARGEST_INTEGER = 2**31 - 1
LARGEST_NUMBER = 1e30
"""Both stay within what 32-bit arrays can hold."""
LONGEST_SHOWN = 60


class UserError(ValueError):
    """Bad input: its message is one line saying what, where and what is allowed.

    The command line prints the message alone and exits with code 2. What a terminal would
    act upon, such as a line break in the name of a file, is shown escaped.
    """

    def __init__(self, message: str) -> None:
        super().__init__("".join(c if c.isprintable() else _escaped(c) for c in message))


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()


def first_line(error: Exception) -> str:
    """What another's ``error`` says, in one line, to be told in a `UserError`."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def shown(value: object) -> str:
    """``value`` as Python writes it, cut off where that is long."""
    try:
        text = repr(value)
    except ValueError:  # an integer of thousands of digits
        text = f"a {type(value).__name__}"
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."


def require_choice(name: str, value: object, allowed: list[str]) -> None:
    """Raise `UserError` unless ``value`` is one of ``allowed``."""
    if not isinstance(value, str) or value not in allowed:
        raise UserError(f"{name}: unknown value {shown(value)} (allowed: {', '.join(allowed)})")


def require_positive_int(
    name: str, value: int, minimum: int = 1, maximum: int = LARGEST_INTEGER
) -> None:
    """Raise `UserError` unless ``value`` is an integer from ``minimum`` to ``maximum``."""
    if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= maximum:
        allowed = f"an integer from {minimum} to {maximum}"
        if maximum == LARGEST_INTEGER and not (isinstance(value, int) and value > maximum):
            allowed = f"an integer >= {minimum}"
        raise UserError(f"{name}: {shown(value)} is not allowed ({allowed})")


def whole_number(name: str, value: Any, minimum: int = 1) -> int:
    """``value``, of any type of integers, as an int. Raises `UserError` unless >= ``minimum``."""
    with contextlib.suppress(TypeError):
        value = value if isinstance(value, bool) else operator.index(value)
    require_positive_int(name, value, minimum)
    return int(value)


def require_number(
    name: str, value: float, *, minimum: float = 0.0, inclusive: bool = False
) -> None:
    """Raise `UserError` unless ``value`` is above ``minimum``, and finite also in 32 bits."""
    sign = ">=" if inclusive else ">"
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if (
        not is_number
        or not (minimum <= value <= LARGEST_NUMBER)
        or (value == minimum and not inclusive)
    ):
        raise UserError(
            f"{name}: {shown(value)} is not allowed (a finite number {sign} {minimum:g})"
        )


def finite_number(name: str, value: Any) -> float:
    """``value`` as a float. Raises `UserError` unless it is one finite number."""
    try:
        number = math.nan if isinstance(value, str | bytes) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"{name}: {shown(value)} is not allowed (a finite number)")
    return number
