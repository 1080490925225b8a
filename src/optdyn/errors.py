"""The one error that bad input raises."""


class UserError(ValueError):
    """Bad input: its message is one line saying what, where and what is allowed.

    The command line prints the message alone and exits with code 2.
    """


def require_choice(name: str, value: object, allowed: list[str]) -> None:
    """Raise `UserError` unless ``value`` is one of ``allowed``."""
    if value not in allowed:
        raise UserError(f"{name}: unknown value {value!r} (allowed: {', '.join(allowed)})")


def require_positive_int(name: str, value: int, minimum: int = 1) -> None:
    """Raise `UserError` unless ``value`` is an integer of at least ``minimum``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise UserError(f"{name}: {value!r} is not allowed (an integer >= {minimum})")


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
