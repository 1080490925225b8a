"""What the result files on explained and distilled optimizers hold (see `_results`)."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Complex128, Float64

from optdyn.distillation import LADDER, Kept, from_values
from optdyn.errors import UserError
from optdyn.mechanisms._measured import Mechanisms
from optdyn.meta_training import MetaTraining
from optdyn.runs._results import HeldOut, Score

# Mechanisms.


@dataclasses.dataclass(frozen=True, eq=False)
class TracksResult:
    """The leading modes followed through meta-training (see `Tracks`)."""

    meta_step: list[int]
    beta: Complex128[np.ndarray, "checkpoints tracks"]
    alpha: Complex128[np.ndarray, "checkpoints tracks"]
    gain: Float64[np.ndarray, "checkpoints tracks"]
    timescale: Float64[np.ndarray, "checkpoints tracks"]
    match_cost: list[list[float]]


@dataclasses.dataclass(frozen=True)
class MechanismsInputs:
    """What an explanation depends on; ``checkpoints``: the optimizers' fingerprints."""

    layout: int
    task: str
    task_options: dict[str, Any]
    settings: HeldOut
    baselines: dict[str, dict[str, float]]
    checkpoints: list[str]


@dataclasses.dataclass(frozen=True, eq=False)
class MechanismsResult:
    """``mechanisms.json``: the mechanisms at ``meta_step``, and tracks of modes up to there.

    ``closed_forms``: the adaptation of tuned RMSProp and Adam at positive gradients.
    """

    inputs: MechanismsInputs
    meta_step: int
    mechanisms: Mechanisms
    closed_forms: dict[str, Float64[np.ndarray, " positive"]]
    tracks: TracksResult


# Readable optimizers.


@dataclasses.dataclass(frozen=True)
class FittedSize:
    """A readable optimizer fitted to a task (see `fit_sizes`).

    ``added``: the part that it has and the size before has not; ``start``: what its fit
    began from, the best of ``starts`` by the meta-objective on ``validation`` problems.
    """

    name: str
    added: str
    numbers: int
    start: str
    starts: dict[str, float]
    values: dict[str, dict[str, Any]]
    validation: float
    imitation_error: float

    def __post_init__(self) -> None:
        from_values(self.values)


@dataclasses.dataclass(frozen=True)
class FittedInputs:
    """What a fit depends on.

    ``distillation``: the choices of `Distillation` that change a fit; ``learned``: the
    learned optimizer's fingerprint; ``tuned``: hyperparameters by baseline.
    """

    task_options: dict[str, Any]
    protocol: MetaTraining
    seed: int
    distillation: dict[str, Any]
    learned: str
    tuned: dict[str, dict[str, float]]


@dataclasses.dataclass(frozen=True)
class FittedResult:
    """``distillation/fitted.json``: readable optimizers fitted to a task, smallest first.

    ``command``: the command line that fitted them.
    """

    task: str
    command: str
    inputs: FittedInputs
    sizes: list[FittedSize]

    def __post_init__(self) -> None:
        added = tuple(size.added for size in self.sizes)
        if not added or added != LADDER[: len(added)]:
            raise UserError("sizes: not the sizes of readable optimizers")


@dataclasses.dataclass(frozen=True)
class StoredSize:
    """``distillation/size-….json``: one size, so that an interrupted fit goes on."""

    inputs: FittedInputs
    row: FittedSize


@dataclasses.dataclass(frozen=True)
class Judged:
    """A test meta-objective, and how much of the learned optimizer's advantage it is."""

    mean: float
    standard_error: float
    exploded: int
    kept: Kept


@dataclasses.dataclass(frozen=True)
class JudgedMechanism(Judged):
    """The learned optimizer without a mechanism; ``what`` was taken away."""

    what: str


@dataclasses.dataclass(frozen=True)
class JudgedSize(FittedSize, Judged):
    """A readable optimizer judged on the test problems."""


@dataclasses.dataclass(frozen=True)
class DistillationInputs:
    """What a distillation depends on; ``fitted``: the SHA-256 of the fitted sizes' file."""

    task: str
    task_options: dict[str, Any]
    judged: HeldOut
    problems: list[int]
    fitted: str
    shipped: bool
    learned: str
    baseline: dict[str, Score]


@dataclasses.dataclass(frozen=True)
class DistillationResult:
    """``distillation.json``: readable optimizers of every size, judged.

    ``command``: the command line of the fit. ``baseline``: the best tuned one. ``chosen``:
    the place of the best size in ``sizes``. ``without``: the chosen one without each of its
    parts; ``learned_without``: the learned one without each of its mechanisms.
    """

    inputs: DistillationInputs
    shipped: bool
    command: str
    baseline: str
    learned: Score
    sizes: list[JudgedSize]
    chosen: int
    without: dict[str, Judged]
    learned_without: dict[str, JudgedMechanism]

    @property
    def best(self) -> JudgedSize:
        """The chosen size."""
        return self.sizes[self.chosen]
