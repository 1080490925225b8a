"""What the cards of the optimizers that ship say: `python -m benchmarks.cards [NAME...]`.

Measures each stage of each optimizer (or of those named) and writes ``measured.json`` beside its
weights: the gradients that it meets on its task, what an update costs beside Adam's, and how it
does on its own task, for five times as many steps, and on the other tasks. Some minutes.
"""

from __future__ import annotations

import hashlib
import os
import platform
import sys
from pathlib import Path

import optax

from optdyn.optimizers import BASELINES
from optdyn.pretrained import PRETRAINED, load_pretrained, load_shipped, other_trainings
from optdyn.pretrained._measured import (
    MEASURED,
    Measured,
    Measurements,
    Tried,
    cost,
    gradients_met,
    tried,
)
from optdyn.pretrained._shipped import FOLDER, READABLE, shipped_card
from optdyn.runs._distillation_fit import FITTED
from optdyn.runs._store import write_result
from optdyn.search import best
from optdyn.tasks import Digits, Task, make_task
from optdyn.tasks._description import task_from

PROBLEMS = 8
GRADIENT_PROBLEMS = 32
PARAMETERS = 100_000
STEPS = 200
LONGER = 5


def main(names: list[str]) -> None:
    """Measure the optimizers called ``names`` (default: all that ship)."""
    for name in names or [*PRETRAINED, *other_trainings()]:
        stages = {**PRETRAINED, **other_trainings()}[name]
        if (FOLDER / name / FITTED).is_file():
            stages = (*stages, READABLE)
        found = {stage: measure(name, stage) for stage in stages}
        sha = _sha256(name)
        result = Measurements(sha, f"python -m benchmarks.cards {name}", found)
        write_result(FOLDER / name / MEASURED, result)
        print(name, *found, flush=True)


def measure(name: str, stage: str) -> Measured:
    """Everything of one stage."""
    card = shipped_card(name)
    tx = pair(name, stage)
    own = task_from(card.task, **card.task_options)
    horizon = card.protocol.unroll_length
    return Measured(
        gradients_met(tx, own, horizon, GRADIENT_PROBLEMS),
        cost(tx, PARAMETERS, f"{os.cpu_count()} CPU cores ({platform.machine()})"),
        tuple(
            _tried(tx, task, described, steps)
            for task, described, steps in places(own, card.task, horizon)
        ),
    )


def places(own: Task, name: str, horizon: int) -> list[tuple[Task, str, int]]:
    """The tasks, their names and numbers of steps that an optimizer is tried on."""
    others: list[tuple[str, Task]] = [(n, make_task(n)) for n in PRETRAINED if n != name]
    batched = Digits(batch=64)
    return [
        (own, name, horizon),
        (own, name, LONGER * horizon),
        *((task, other, STEPS) for other, task in others),
        *([] if own == batched else [(batched, "digits", STEPS)]),
    ]


def pair(name: str, stage: str) -> optax.GradientTransformation:
    """The optax pair of a stage."""
    found = load_pretrained(name, stage)
    return found if isinstance(found, optax.GradientTransformation) else found.as_optax()


def _tried(tx: optax.GradientTransformation, task: Task, name: str, steps: int) -> Tried:
    tuned = best(load_shipped(name).tables["adam"]).hyperparameters
    adam = BASELINES["adam"].factory(**tuned)
    return tried(tx, adam, (name, getattr(task, "batch", None)), task, steps, PROBLEMS)


def _sha256(name: str) -> str:
    return hashlib.sha256(Path(FOLDER / name / "final.safetensors").read_bytes()).hexdigest()


if __name__ == "__main__":
    main(sys.argv[1:])
