"""Which problems judge, and what the results of an analysis and for the explorer hold.

Other results are defined where they are made: one type a file of a run folder. Readers
check a file against its type (see `optdyn.runs._plain.parse`): every field is there and of its
type, and axes of the same name have the same size throughout a file.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Complex128, Float64

from optdyn.distillation import LinearAccount
from optdyn.errors import require_positive_int
from optdyn.evaluation import MeanAndError, ProblemSet
from optdyn.inner_loop import Objective
from optdyn.mechanisms._momentum_stage import MomentumPoint, StageRow, TunedMomentum
from optdyn.random_streams import LARGEST_SEED
from optdyn.tasks import Task


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """On which held-out problems optimizers are judged, and by which meta-objective.

    Raises `UserError` for a seed or a number of problems that cannot be.

    Attributes:
        seed: seed of the problems: the same seed gives the same ones
        num_problems: unseen problems that each optimizer is tried on
        objective: the meta-objective
    """

    seed: int
    num_problems: int = 64
    objective: Objective = Objective()

    def __post_init__(self) -> None:
        require_positive_int("seed", self.seed, 0, LARGEST_SEED)
        require_positive_int("num_problems", self.num_problems)

    def problems(self, task: Task, stream: str) -> ProblemSet:
        """The first problems of ``task`` in a stream, such as `VALIDATION_STREAM`."""
        return ProblemSet(task, self.seed, self.num_problems, self.objective, stream)


@dataclasses.dataclass(frozen=True)
class FixedPointRow:
    """The fixed point that a checkpoint was linearised at (see `find_fixed_points`).

    ``candidates`` starts, of which some ``converged``, to ``distinct`` points.
    """

    candidates: int
    converged: int
    distinct: int
    residual: float
    error_estimate: float
    spectral_radius: float
    drift: float


@dataclasses.dataclass(frozen=True, eq=False)
class ModesRow:
    """A checkpoint's `Eigenmodes`, the leading one first; ``start``: their initial transients."""

    beta: Complex128[np.ndarray, " modes"]
    alpha: Complex128[np.ndarray, " modes"]
    delayed: Float64[np.ndarray, " modes"]
    start: Complex128[np.ndarray, " modes"]
    gain: Float64[np.ndarray, " modes"]
    timescale: Float64[np.ndarray, " modes"]
    feedthrough: float
    condition_number: float
    degenerate: bool
    impulse_mismatch: float


@dataclasses.dataclass(frozen=True, eq=False)
class CurvesRow:
    """Mean losses along the inner loop of the whole optimizer and its leading mode alone."""

    full: Float64[np.ndarray, " steps"]
    one_mode: Float64[np.ndarray, " steps"]


@dataclasses.dataclass(frozen=True, eq=False)
class CheckpointRow(StageRow):
    """What the analysis of one checkpoint found."""

    fixed_point: FixedPointRow
    modes: ModesRow
    curves: CurvesRow


@dataclasses.dataclass(frozen=True)
class RowOrigin:
    """What a stored row was computed from: the optimizer's fingerprint and tuned momentum."""

    layout: int
    optimizer: str
    tuned: TunedMomentum


@dataclasses.dataclass(frozen=True, eq=False)
class StoredRow:
    """``analysis/<checkpoint>.json``: one row, so that an interrupted analysis goes on."""

    origin: RowOrigin
    row: CheckpointRow


@dataclasses.dataclass(frozen=True)
class AnalysisInputs:
    """What an analysis depends on; ``checkpoints``: by file, the optimizer's fingerprint.

    ``stage``: the fingerprint of the checkpoint that is judged as the momentum stage, where
    another training gave it.
    """

    layout: int
    task: str
    settings: HeldOut
    momentum: dict[str, float]
    checkpoints: dict[str, str]
    stage: str | None


@dataclasses.dataclass(frozen=True)
class Fault:
    """Why the checkpoint at ``meta_step`` could not be analysed."""

    meta_step: int
    fault: str


@dataclasses.dataclass(frozen=True, eq=False)
class StageCurves:
    """Mean ± standard error of the loss curves at the momentum stage (Fig. 7c)."""

    full: MeanAndError[Float64[np.ndarray, " steps"]]
    one_mode: MeanAndError[Float64[np.ndarray, " steps"]]
    tuned: MeanAndError[Float64[np.ndarray, " steps"]]


@dataclasses.dataclass(frozen=True, eq=False)
class JudgedStage:
    """The momentum stage, measured once on problems that did not choose it.

    ``training``: which other training it is a checkpoint of ("" for the run's own).
    ``tuned``: the best tuned momentum on the same problems. ``strain``: each measure over its
    threshold, by the names of `StageThresholds`, met where ≤ 1.
    """

    training: str
    row: CheckpointRow
    tuned: TunedMomentum
    strain: dict[str, float]
    curves: StageCurves


@dataclasses.dataclass(frozen=True, eq=False)
class AnalysisResult:
    """``analysis.json``: every checkpoint's row, and which of them is the momentum stage.

    ``tuned``: the best tuned momentum; ``theory``: the optimum for the task's range of
    curvatures, if it states one. ``momentum_stage`` and ``final``: meta-steps of this training.
    ``judged``: the momentum stage on fresh problems, where one of another training is given
    that one. ``linear``: what linear dynamics account for at the ``"stage"`` and at the
    ``"final"`` checkpoint, on the same problems and against tuned momentum; without those whose
    final checkpoint has no fixed point.
    """

    inputs: AnalysisInputs
    tuned: TunedMomentum
    theory: MomentumPoint | None
    momentum_stage: int
    final: int
    judged: JudgedStage
    linear: dict[str, LinearAccount]
    checkpoints: list[CheckpointRow]
    faults: list[Fault]

    def row(self, meta_step: int) -> CheckpointRow:
        """The checkpoint at ``meta_step``, one of `checkpoints`."""
        return next(row for row in self.checkpoints if row.meta_step == meta_step)

    @property
    def stage(self) -> CheckpointRow:
        """The row of the momentum stage, on fresh problems."""
        return self.judged.row

    @property
    def curves(self) -> StageCurves:
        """The loss curves at the momentum stage, on fresh problems."""
        return self.judged.curves


# What the explorer needs.


@dataclasses.dataclass(frozen=True, eq=False)
class ExplorerProblems:
    """Validation problems: the loss's name, and each one's start and data."""

    loss: str
    start: Float64[np.ndarray, "problems parameters"]
    data: list[Any]


@dataclasses.dataclass(frozen=True, eq=False)
class ModeSet:
    """A choice of modes, by their places, and the mean losses of what is made of them."""

    name: str
    kept: list[int]
    curve: Float64[np.ndarray, " steps"]


@dataclasses.dataclass(frozen=True, eq=False)
class ModeSets:
    """Some choices of modes at one stage, beside the whole optimizer's mean losses."""

    full: Float64[np.ndarray, " steps"]
    sets: list[ModeSet]


@dataclasses.dataclass(frozen=True)
class ExplorerInputs:
    """What the explorer's numbers depend on."""

    task: str
    task_options: dict[str, Any]
    settings: list[HeldOut]
    checkpoints: list[str]


@dataclasses.dataclass(frozen=True, eq=False)
class ExplorerResult:
    """``explorer.json``: ``problems`` to try sets of modes on, or the losses of ``choices``.

    ``choices``: by meta-step, on ``num_problems`` problems.
    """

    inputs: ExplorerInputs
    num_steps: int
    problems: ExplorerProblems | None = None
    choices: dict[str, ModeSets] | None = None
    num_problems: int | None = None
