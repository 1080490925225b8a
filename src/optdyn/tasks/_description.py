"""Tasks by name: what files, cards and command lines say of a task, and the way back."""

from __future__ import annotations

import dataclasses
import importlib
import json
import operator
from typing import Any

from optdyn.errors import UserError, first_line, shown
from optdyn.tasks._base import Task
from optdyn.tasks._gate import require_task
from optdyn.tasks._registry import TASKS, make_task


@dataclasses.dataclass(frozen=True)
class TaskDescription:
    """A task's identity in files: equal descriptions are of the same distribution.

    ``name``: in the registry, or ``module:QualName`` of the class of a task of one's own.
    ``options``: its dataclass fields as JSON holds them (their repr where it cannot).
    """

    name: str
    options: dict[str, Any]


def describe_task(task: Task) -> TaskDescription:
    """The name and the options of ``task``. Raises `UserError` for what is no task."""
    require_task(task)
    kind = type(task)
    names = [name for name, factory in TASKS.items() if factory is kind]
    # An option that is None is left out, so that a new one changes no description.
    options = {
        field.name: getattr(task, field.name)
        for field in _fields(task)
        if getattr(task, field.name) is not None
    }
    own = f"{kind.__module__}:{kind.__qualname__}"
    return TaskDescription((names or [own])[0], json.loads(json.dumps(options, default=repr)))


def with_options(task: Task, options: dict[str, Any]) -> Task:
    """``task`` with some of its ``options`` replaced.

    Raises `UserError` for an option that it does not have, or a value that is not allowed.
    """
    if not options:
        return task
    name = describe_task(task).name
    allowed = [field.name for field in _fields(task)]
    for option in options:
        if option not in allowed:
            told = ", ".join(allowed) or "it has none"
            raise UserError(f"task {name}: unknown option {shown(option)} (has: {told})")
    try:
        return dataclasses.replace(task, **options)  # type: ignore[type-var]
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"task {name}: cannot be made ({first_line(error)})") from None


def _fields(task: Task) -> list[dataclasses.Field[Any]]:
    """What a task's options are: the fields that it is made with, if it is a dataclass."""
    found: tuple[dataclasses.Field[Any], ...] = (
        dataclasses.fields(task) if dataclasses.is_dataclass(task) else ()
    )
    return [field for field in found if field.init]


def task_from(text: str, **options: Any) -> Task:
    """The task that ``text`` names, with its ``options``.

    ``text`` is a name of the registry, or ``module:Object``: a class, or another function
    of the options, that gives a task, or a task itself, which takes no options.

    Raises `UserError` for a name that is not found, or what gives no task.
    """
    where, colon, name = text.partition(":")
    if not colon:
        return make_task(text, **options)
    try:
        found = operator.attrgetter(name)(importlib.import_module(where))
    except Exception as error:
        raise UserError(
            f"task: cannot find {text} ({first_line(error)}); give module:Object, where Object is "
            "a class or a task at the top level of a module that Python finds from here"
        ) from None
    if not isinstance(found, type) and callable(getattr(found, "sample", None)):
        if options:
            raise UserError(f"task {text}: takes no options (it is a task, not a class of tasks)")
        return found
    if not callable(found):
        raise UserError(f"task: {text} is {shown(found)}, not a task (it has no method sample)")
    try:
        made = found(**options)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"task {text}: cannot be made ({first_line(error)})") from None
    require_task(made)
    return made
