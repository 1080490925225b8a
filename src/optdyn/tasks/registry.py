"""The tasks by name: what the tests, the command line and the docs iterate over."""

from __future__ import annotations

from collections.abc import Callable

from optdyn.errors import UserError, require_choice
from optdyn.tasks.base import Task
from optdyn.tasks.digits import Digits
from optdyn.tasks.linear_regression import LinearRegression
from optdyn.tasks.rosenbrock import Rosenbrock
from optdyn.tasks.two_moons import TwoMoons

TASKS: dict[str, Callable[..., Task]] = {
    "linear_regression": LinearRegression,
    "rosenbrock": Rosenbrock,
    "two_moons": TwoMoons,
    "digits": Digits,
}


def make_task(name: str, **options: object) -> Task:
    """The task called ``name`` with its ``options``.

    Raises `UserError` for an unknown name, option or value.
    """
    require_choice("task", name, list(TASKS))
    try:
        return TASKS[name](**options)
    except TypeError as error:
        raise UserError(f"task {name}: bad options {options!r} ({error})") from None
