"""What figures are drawn from when plain arrays do not say enough."""

from __future__ import annotations

import dataclasses

from jaxtyping import Complex, Float, Int
from numpy import ndarray


@dataclasses.dataclass(frozen=True)
class Curve:
    """An optimizer's loss against iteration over a set of problems.

    ``mean`` and ``standard_error`` [T + 1]: over the problems, from before the
    first step to after the last.
    """

    name: str
    mean: Float[ndarray, " steps"]
    standard_error: Float[ndarray, " steps"]


@dataclasses.dataclass(frozen=True)
class Score:
    """One number with its standard error, over problems, for the optimizer ``name``."""

    name: str
    mean: float
    standard_error: float


@dataclasses.dataclass(frozen=True)
class MomentumPoint:
    """Hyperparameters of momentum: the learning rate α and the momentum β."""

    alpha: float
    beta: float


@dataclasses.dataclass(frozen=True)
class SearchPanel:
    """A search over one optimizer's hyperparameters, seen in two of them.

    ``learning_rate``, ``decay`` and ``meta_objective`` [combinations];
    ``decay`` is the one whose distance from 1 is drawn, written ``symbol``
    (β, γ, β₁, β₂). A meta-objective that is not finite means: diverged.
    ``best`` is the row of the combination that was selected.
    """

    optimizer: str
    symbol: str
    learning_rate: Float[ndarray, " combinations"]
    decay: Float[ndarray, " combinations"]
    meta_objective: Float[ndarray, " combinations"]
    best: int


@dataclasses.dataclass(frozen=True)
class StoredModes:
    """The eigenmodes of one stored checkpoint, the leading one first.

    ``beta`` and ``alpha`` [modes]: each mode's eigenvalue and learning rate.
    """

    meta_step: int
    beta: Complex[ndarray, " modes"]
    alpha: Complex[ndarray, " modes"]


@dataclasses.dataclass(frozen=True)
class MomentumStage:
    """How a learned optimizer passes through momentum, checkpoint by checkpoint.

    Arrays are [checkpoints]: the meta-objective, the leading mode's real
    learning rate ``alpha`` and momentum ``beta``, ``gain_gap`` (its steady-state
    gain over the next mode's), ``momentum_ratio`` (meta-objective of momentum
    run with that α and β over that of tuned momentum), ``deviation`` (median
    relative deviation of the one-mode optimizer's loss curve). A value that
    could not be had is NaN. ``chosen`` is the meta-step of the checkpoint that
    is taken as the momentum stage; ``thresholds`` maps ``gain_gap``,
    ``momentum_ratio``, ``deviation`` to the levels that claims test. ``theory``
    is None where the task's range of curvatures is not known.
    """

    meta_step: Int[ndarray, " checkpoints"]
    meta_objective: Float[ndarray, " checkpoints"]
    alpha: Float[ndarray, " checkpoints"]
    beta: Float[ndarray, " checkpoints"]
    gain_gap: Float[ndarray, " checkpoints"]
    momentum_ratio: Float[ndarray, " checkpoints"]
    deviation: Float[ndarray, " checkpoints"]
    tuned: MomentumPoint
    theory: MomentumPoint | None
    tuned_meta_objective: float
    chosen: int
    thresholds: dict[str, float] = dataclasses.field(default_factory=dict)
