"""The tasks by name: what the tests, the command line and the docs iterate over."""

from __future__ import annotations

import inspect
from collections.abc import Callable

from optdyn.errors import UserError, require_choice, shown
from optdyn.tasks._base import Task
from optdyn.tasks._digits import Digits
from optdyn.tasks._linear_regression import LinearRegression
from optdyn.tasks._rosenbrock import Rosenbrock
from optdyn.tasks._two_moons import TwoMoons

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
    allowed = list(inspect.signature(TASKS[name]).parameters)
    for option in options:
        if option not in allowed:
            told = ", ".join(allowed) or "it has none"
            raise UserError(f"task {name}: unknown option {shown(option)} (allowed: {told})")
    return TASKS[name](**options)
