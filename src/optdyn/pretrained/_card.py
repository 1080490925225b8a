"""The card of an optimizer that ships: what it is for, what it costs, and where it fails."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from optdyn.distillation import Distilled, from_values
from optdyn.in_words import InWords
from optdyn.optimizers import GradientRange
from optdyn.runs._cards import Card
from optdyn.runs._distillation_fit import FittedResult
from optdyn.runs._store import read_result

CLEARLY = 1.1
"""Losses within this factor of one another count as alike."""
MEASURED = "measured.json"
"""The file beside the weights that holds `Measurements`."""
ADAM_NUMBERS = 2


@dataclasses.dataclass(frozen=True)
class Cost:
    """What an update costs: ``time`` of Adam's, for a model of ``parameters`` parameters.

    ``numbers``: how many float32 numbers of state each parameter has (Adam: 2). ``machine``:
    where it was timed.
    """

    time: float
    numbers: float
    parameters: int
    machine: str


@dataclasses.dataclass(frozen=True)
class Tried:
    """How an optimizer does on ``problems`` unseen problems of a task, in ``steps`` steps.

    ``batch``: the examples in a gradient (None: all). ``first``, ``last``: the median loss
    before and after. ``mean``: the median over problems of the mean loss over the steps, which
    is what optimizers are trained for. ``adam``: the same of Adam, with the hyperparameters
    that the shipped search found for the task. ``worse``: the problems whose loss ends above
    where it began, or is not finite.
    """

    task: str
    batch: int | None
    steps: int
    problems: int
    first: float
    last: float
    mean: float
    adam: float
    worse: int


@dataclasses.dataclass(frozen=True)
class Measured:
    """Everything that was measured of one stage. The first of ``tried`` is as in training."""

    gradients: GradientRange
    cost: Cost
    tried: tuple[Tried, ...]


@dataclasses.dataclass(frozen=True)
class Measurements:
    """``measured.json``: ``stages`` by name, for the weights of SHA-256 ``weights``.

    ``command``: what made the file.
    """

    weights: str
    command: str
    stages: dict[str, Measured]


@dataclasses.dataclass(frozen=True)
class PretrainedCard(InWords):
    """What `load_pretrained`'s optimizer is, in the words of five lines.

    ``training``: the task, architecture, protocol, seed, meta-step and versions of the learned
    optimizer's training. ``measured``: its gradients, cost, and losses on several tasks (None:
    not measured for these weights). ``numbers``: a readable optimizer's parts (None: a
    learned one). ``file``, ``bytes``, ``sha256``: where it is stored; ``command``: what made it.
    """

    name: str
    stage: str
    training: Card
    measured: Measured | None
    numbers: dict[str, dict[str, Any]] | None
    file: str
    bytes: int
    sha256: str
    command: str

    def verdict(self) -> list[str]:
        """What it is, what it was trained on, its cost, where it works and where it fails."""
        lines = [self._what(), self._domain()]
        if self.measured is None:
            return [*lines, "cost and limits were not measured for these weights"]
        own = self.measured.tried[0]
        good = [_in_words(row, own) for row in self.measured.tried if _holds(row)]
        bad = [_in_words(row, own) for row in self.measured.tried if not _holds(row)]
        return [
            *lines,
            self._cost(self.measured),
            f"mean loss as low as tuned Adam's: {'; '.join(good) or 'nowhere that was tried'}",
            f"fails: {'; '.join(bad) or 'nowhere that was tried'}",
        ]

    def _what(self) -> str:
        if self.numbers is not None:
            optimizer = from_values(self.numbers)
            return f"{self.name} (readable): {optimizer.size} numbers: {optimizer.name}"
        shape, step = self.training.architecture, self.training.meta_step
        return (
            f"{self.name} ({self.stage}): {shape.cell_name} with {shape.units} units, after {step} "
            "meta-steps; there is no learning rate to set"
        )

    def _domain(self) -> str:
        options = dict(self.training.task_options)
        batch = options.pop("batch", None)
        listed = ", ".join(f"{name} {value}" for name, value in options.items())
        task = f"{self.training.task}{f' ({listed})' if listed else ''}"
        steps = self.training.protocol.unroll_length
        domain = f"trained on {task}, {_batch(batch)}, for {steps} steps"
        if self.measured is None:
            return domain
        found = self.measured.gradients
        return (
            f"{domain}, where the largest gradient of a step is {found.smallest:.1g} to "
            f"{found.largest:.1g}"
        )

    @staticmethod
    def _cost(measured: Measured) -> str:
        cost = measured.cost
        return (
            f"an update takes {_two_digits(cost.time)} times as long as Adam's, and "
            f"{cost.numbers:g} numbers of memory per parameter (Adam: {ADAM_NUMBERS}); measured "
            f"with {cost.parameters} parameters on {cost.machine}"
        )


def _holds(row: Tried) -> bool:
    return row.worse == 0 and row.mean <= CLEARLY * row.adam


def _in_words(row: Tried, own: Tried) -> str:
    """A row in words, with its batch and its steps where they are not those of the training."""
    parts = [row.task]
    if (row.task, row.batch) != (own.task, own.batch) and (row.batch or own.batch):
        parts.append(f"in {_batch(row.batch)}")
    if row.steps != own.steps:
        parts.append(f"for {row.steps} steps")
    found = f"{row.mean:.2g}, Adam {row.adam:.2g}"
    if row.worse:
        found = f"{row.worse} of {row.problems} problems end worse than they began"
    return f"{' '.join(parts)} ({found})"


def _two_digits(number: float) -> str:
    return f"{float(f'{number:.2g}'):g}"


def _batch(batch: int | None) -> str:
    return "full batches" if batch is None else f"batches of {batch}"


def read_measurements(task_folder: Path, weights: str) -> Measurements | None:
    """``measured.json``, if there is one for the weights of this SHA-256.

    Raises `UserError` for a damaged file.
    """
    path = task_folder / MEASURED
    if not path.exists():
        return None
    found = read_result(path, Measurements)
    return found if found.weights == weights else None


def readable_in(path: Path) -> Distilled:
    """The readable optimizer in a file of fitted sizes.

    It is the size with the lowest meta-objective on validation problems. Raises `UserError`
    for a file that is missing or damaged.
    """
    best = min(read_result(path, FittedResult).sizes, key=lambda size: size.validation)
    return from_values(best.values)
