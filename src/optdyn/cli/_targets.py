"""The optimizer that a word on the command line names."""

from __future__ import annotations

import dataclasses
import importlib
import operator
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optdyn.errors import UserError

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
    """A checkpoint file, ``module:callable``, or a pretrained name with its ``stage``.

    Raises `UserError` for anything else, for a file that is damaged, and for a callable
    that cannot be imported, fails, or returns no optimizer.
    """
    from optdyn.pretrained import PRETRAINED, load_pretrained, load_shipped
    from optdyn.runs._checkpoints import load_optimizer

    if text in PRETRAINED:
        return Target(f"{text} ({stage})", load_pretrained(text, stage), load_shipped(text).card)
    if os.path.exists(text) or text.endswith(".safetensors"):
        return Target(text, *load_optimizer(Path(text)))
    if ":" in text:
        return Target(text, _call(text))
    names = ", ".join(PRETRAINED) or "none here"
    raise UserError(
        f"target: {text[:LETTERS]!r} is not known (a checkpoint file, a pretrained name "
        f"({names}), or module:callable)"
    )


def _call(text: str) -> Any:
    import optax

    where, _, name = text.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")  # as with python -m: modules beside the user come first
    try:
        made = operator.attrgetter(name)(importlib.import_module(where))()
    except (Exception, SystemExit) as error:
        # The user's own code: whatever it raises is bad input.
        told = f"{type(error).__name__}: {error}"[:LETTERS]
        raise UserError(f"target: {text[:LETTERS]}: {told}") from error
    if not (isinstance(made, optax.GradientTransformation) or hasattr(made, "as_optax")):
        raise UserError(
            f"target: {text[:LETTERS]}: returned {type(made).__name__} "
            "(an optax.GradientTransformation)"
        )
    return made
