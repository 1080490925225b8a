"""The card of a checkpoint: what its arrays are, and where they came from."""

from __future__ import annotations

import dataclasses
from typing import Any

from optdyn.errors import UserError
from optdyn.meta_training._trainer import MetaTraining
from optdyn.optimizers._componentwise_rnn import Architecture
from optdyn.optimizers._encodings import Encoding
from optdyn.runs._files import to_plain


@dataclasses.dataclass(frozen=True)
class Card:
    """The origin of a checkpoint.

    ``meta_step`` meta-steps were done when it was made; ``meta_objective`` is
    what was last measured for it, if anything was. ``initial`` names the
    meta-parameters that training started from (None: random ones from ``seed``).
    """

    task: str
    task_options: dict[str, Any]
    architecture: Architecture
    protocol: MetaTraining
    seed: int
    meta_step: int = 0
    meta_objective: float | None = None
    initial: str | None = None
    versions: dict[str, str] = dataclasses.field(default_factory=dict)

    def settings(self) -> dict[str, Any]:
        """The part that identifies the run, the same at each of its checkpoints."""
        plain = to_plain(self)
        return {
            name: plain[name]
            for name in ("task", "task_options", "architecture", "protocol", "seed", "initial")
        }


def card_from_plain(plain: dict[str, Any]) -> Card:
    """The card that `to_plain` made ``plain`` from; raises `UserError` at the first fault."""
    values = _fields_of(Card, plain)
    architecture = _fields_of(Architecture, values["architecture"])
    encoding = Encoding(**_fields_of(Encoding, architecture["encoding"]))
    values["architecture"] = Architecture(**{**architecture, "encoding": encoding})
    values["protocol"] = MetaTraining(**_fields_of(MetaTraining, values["protocol"]))
    for name, kind in (
        ("task", str), ("task_options", dict), ("seed", int), ("meta_step", int),
        ("versions", dict), ("initial", str | None), ("meta_objective", float | int | None),
    ):  # fmt: skip
        if not isinstance(values[name], kind) or isinstance(values[name], bool):
            told = getattr(kind, "__name__", kind)
            raise UserError(f"{name}: {values[name]!r} is not of type {told}")
    return Card(**values)


def describe(architecture: Architecture) -> str:
    """An architecture in one line, for messages."""
    encoding = architecture.encoding
    return (
        f"cell {architecture.cell}, {architecture.units} units, encoding {encoding.kind} "
        f"(gain {encoding.gain:g}, scale {encoding.scale:g}), "
        f"output scale {architecture.output_scale:g}"
    )


def require_architecture(found: Architecture, expected: Architecture, where: str) -> None:
    """Raise `UserError`, saying both, unless the two architectures are the same."""
    if found != expected:
        raise UserError(
            f"{where}: has another architecture: {describe(found)} (this run: {describe(expected)})"
        )


def _fields_of(kind: type, plain: object) -> dict[str, Any]:
    """``plain``, when it is an object with the fields of ``kind``, unknown ones refused.

    A field that has a default may be missing, as from a card written before it existed.
    """
    if not isinstance(plain, dict):
        raise UserError(f"{kind.__name__}: not a JSON object (found {type(plain).__name__})")
    fields = {field.name: field.default for field in dataclasses.fields(kind)}
    for name in sorted(fields.keys() ^ plain.keys()):
        if name not in fields:
            raise UserError(f"{kind.__name__}: field {name} is unknown")
        if fields[name] is dataclasses.MISSING:
            raise UserError(f"{kind.__name__}: field {name} is missing")
    return {name: plain.get(name, default) for name, default in fields.items()}
