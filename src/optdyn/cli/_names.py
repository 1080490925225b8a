"""The objects that words on the command line name: tasks, cells, optimizers, parameters."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import operator
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optdyn.errors import UserError, shown

if TYPE_CHECKING:
    from optdyn.runs._cards import Card

LETTERS = 200


@dataclasses.dataclass(frozen=True)
class Target:
    """An optimizer, what to call it, and its card where it is a stored one."""

    name: str
    optimizer: Any
    card: Card | None = None


def load_target(text: str, stage: str) -> Target:
    """A checkpoint file, ``module:object``, or a pretrained name with its ``stage``.

    Raises `UserError` for anything else, for a file that is damaged, and for an object
    that cannot be imported, or is no optimizer and returns none.
    """
    from optdyn.pretrained import PRETRAINED, load_pretrained, other_trainings
    from optdyn.pretrained._shipped import READABLE, shipped_card
    from optdyn.runs._checkpoints import load_optimizer

    if text in PRETRAINED or text in other_trainings():
        card = shipped_card(text, "final" if stage == READABLE else stage)
        return Target(f"{text} ({stage})", load_pretrained(text, stage), card)
    if os.path.exists(text) or text.endswith(".safetensors"):
        return Target(text, *load_optimizer(Path(text)))
    if ":" in text:
        return Target(text, _optimizer(text))
    names = ", ".join(PRETRAINED) or "none here"
    raise UserError(
        f"target: {text[:LETTERS]!r} is not known (a checkpoint file, a pretrained name "
        f"({names}), or module:object, such as mymodule:make_optimizer)"
    )


def tree_from(text: str) -> Any:
    """The tree of parameters that ``module:object`` names, or that it returns when called."""
    try:
        found = imported(text)
        return called(text, found) if callable(found) else found
    except UserError as error:
        raise UserError(f"--params: {error}") from None


def search_here() -> None:
    """Let modules in the current folder be imported, before others, as with ``python -m``."""
    if "" not in sys.path:
        sys.path.insert(0, "")


def imported(text: str) -> Any:
    """What ``module:object`` names; modules in the current folder come first.

    Raises `UserError` where it cannot be imported.
    """
    where, _, name = text.partition(":")
    search_here()
    try:
        return operator.attrgetter(name)(importlib.import_module(where))
    except (Exception, SystemExit) as error:
        raise _refusal(text, error) from error


def called(text: str, function: Any) -> Any:
    """What the user's ``function``, which ``text`` names, returns. Raises `UserError`."""
    missing = _required_arguments(function)
    if missing:
        raise UserError(
            f"{text[:LETTERS]}: needs {', '.join(missing)} (write a function without arguments "
            "in a module of yours that returns the result, and give mymodule:function)"
        )
    try:
        return function()
    except (Exception, SystemExit) as error:
        raise _refusal(text, error) from error


def _required_arguments(function: Any) -> list[str]:
    """The arguments that ``function`` cannot be called without, as far as can be seen."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return []
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in parameters if p.default is p.empty and p.kind not in variable]


def _refusal(text: str, error: BaseException) -> UserError:
    """The user's own code: whatever it raises is bad input."""
    return UserError(f"{text[:LETTERS]}: {type(error).__name__}: {error}"[: 2 * LETTERS])


def _optimizer(text: str) -> Any:
    try:
        found = imported(text)
        made = found if _is_optimizer(found) or not callable(found) else called(text, found)
    except UserError as error:
        raise UserError(f"target: {error}") from None
    if not _is_optimizer(made):
        what = f"returned {type(made).__name__}" if made is not found else f"is {shown(made)}"
        raise UserError(
            f"target: {text[:LETTERS]}: {what} (an optax.GradientTransformation, or a function "
            "that returns one)"
        )
    return made


def _is_optimizer(value: Any) -> bool:
    """An init/update pair, or a learned optimizer that gives one."""
    is_pair = callable(getattr(value, "init", None)) and callable(getattr(value, "update", None))
    return not isinstance(value, type) and (is_pair or hasattr(value, "as_optax"))
