"""The card of a checkpoint: what its arrays are, and where they came from."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
from typing import Any

from optdyn.errors import UserError
from optdyn.meta_training._trainer import MetaTraining
from optdyn.optimizers._componentwise_rnn import Architecture
from optdyn.runs._plain import to_plain

PACKAGES = ("optdyn", "jax", "jaxlib", "optax", "numpy")


@dataclasses.dataclass(frozen=True)
class Card:
    """The origin of a checkpoint.

    ``task`` and ``task_options``: see `describe_task`. It was made after ``meta_step``
    meta-steps; ``meta_objective`` is the last one measured, if any was. ``initial``: the
    fingerprint of the meta-parameters that training started from (None: random ones from
    ``seed``).
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
        names = ("task", "task_options", "architecture", "protocol", "seed", "initial")
        return {name: plain[name] for name in names}


def same_training(settings: dict[str, Any]) -> dict[str, Any]:
    """`Card.settings` without the number of meta-steps.

    A training may be extended: nothing before its end depends on how long it is.
    """
    protocol = {n: v for n, v in settings["protocol"].items() if n != "num_meta_steps"}
    return {**settings, "protocol": protocol}


def describe(architecture: Architecture) -> str:
    """An architecture in one line, for messages."""
    encoding = architecture.encoding
    return (
        f"cell {architecture.cell_name}, {architecture.units} units, encoding {encoding.kind} "
        f"(gain {encoding.gain:g}, scale {encoding.scale:g}), "
        f"output scale {architecture.output_scale:g}"
    )


def require_architecture(found: Architecture, expected: Architecture, where: str) -> None:
    """Raise `UserError`, saying both, unless the two architectures are the same."""
    if found != expected:
        raise UserError(
            f"{where}: has another architecture: {describe(found)} (this run: {describe(expected)})"
        )


def versions() -> dict[str, str]:
    """Python's version and each package's (``"not installed"`` when run from a bare checkout)."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found
