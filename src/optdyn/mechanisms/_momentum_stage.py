"""The stage of meta-training at which a learned optimizer is momentum (appendix A)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import optax
from jaxtyping import Float

from optdyn.dynamics import Eigenmodes, StepMap, step_map, timescale
from optdyn.dynamics._operating_point import OperatingPoint, operating_point
from optdyn.dynamics._reduction import reduced_system
from optdyn.errors import UserError
from optdyn.inner_loop._problem_set import ProblemSet
from optdyn.meta_training._unroll_options import MetaOptimizer
from optdyn.optimizers._baselines import momentum

HISTORIES = 8
"""Gradient histories whose states the fixed-point search starts from."""
Losses = Float[np.ndarray, "problems steps"]


@dataclasses.dataclass(frozen=True)
class MomentumPoint:
    """Hyperparameters of momentum: the learning rate α and the momentum β."""

    alpha: float
    beta: float


@dataclasses.dataclass(frozen=True)
class TunedMomentum(MomentumPoint):
    """The best tuned momentum and its meta-objective on the validation problems."""

    meta_objective: float


@dataclasses.dataclass(frozen=True)
class StageRow:
    """How like momentum one checkpoint is.

    ``alpha``, ``beta``: the leading mode's learning rate and momentum (real
    parts; ``oscillating`` says whether it is one of a complex pair).
    ``gain_gap``: its steady-state gain |α/(1−β)| over the next mode's.
    ``rate_ratio``: |α| over the median of the other modes'. ``momentum_ratio``:
    meta-objective of momentum run with (α, β), over tuned momentum's.
    ``deviation``: the median over steps 1 … T of the relative difference of the
    mean loss curves of the one-mode optimizer and the full one. NaN or inf
    where something diverged.
    """

    meta_step: int
    meta_objective: float
    alpha: float
    beta: float
    oscillating: bool
    gain_gap: float
    rate_ratio: float
    momentum_ratio: float
    deviation: float


@dataclasses.dataclass(frozen=True)
class StageThresholds:
    """What a checkpoint must show to be momentum, as appendix A and Fig. 7 tell it.

    Fixed before any training was looked at. The largest relative difference from the best
    tuned momentum of ``meta_objective`` (the learned optimizer's), ``momentum_ratio``
    (that of momentum run with the leading mode), ``alpha``, ``beta`` and ``timescale``
    (the leading mode's); the smallest ``gain_gap``, which says that one mode stands out;
    and the largest ``deviation``, which says that this mode alone follows the whole.
    """

    meta_objective: float = 0.05
    momentum_ratio: float = 0.05
    alpha: float = 0.10
    beta: float = 0.10
    timescale: float = 0.15
    gain_gap: float = 10.0
    deviation: float = 0.05

    def near(self, meta_objective: float, tuned: TunedMomentum) -> bool:
        """Whether an optimizer performs like tuned momentum."""
        return abs(meta_objective / tuned.meta_objective - 1.0) <= self.meta_objective

    def strain(self, row: StageRow, tuned: TunedMomentum) -> dict[str, float]:
        """Each measure over its threshold, by the names of the thresholds: met where ≤ 1.

        Infinite where something diverged, and for a mode that oscillates or grows.
        """
        monotone = not row.oscillating and 0.0 < row.beta < 1.0
        timescales = timescale(np.array([row.beta, tuned.beta])) if monotone else [np.inf, 1.0]
        strains = {
            "meta_objective": _departure(row.meta_objective, tuned.meta_objective)
            / self.meta_objective,
            "momentum_ratio": _departure(row.momentum_ratio, 1.0) / self.momentum_ratio,
            "alpha": _departure(row.alpha, tuned.alpha) / self.alpha,
            "beta": _departure(row.beta, tuned.beta) / self.beta,
            "timescale": _departure(*timescales) / self.timescale,
            "gain_gap": self.gain_gap / row.gain_gap if row.gain_gap > 0 else np.inf,
            "deviation": row.deviation / self.deviation,
        }
        return {name: float(v) if np.isfinite(v) else np.inf for name, v in strains.items()}

    def met(self, row: StageRow, tuned: TunedMomentum) -> bool:
        """Whether ``row`` meets every threshold."""
        return max(self.strain(row, tuned).values()) <= 1.0

    def choose(self, rows: Sequence[StageRow], tuned: TunedMomentum) -> StageRow:
        """The rule that names the momentum stage, fixed in advance.

        Of the checkpoints that perform like tuned momentum, the one whose largest
        `strain` is smallest; where none performs so, the one whose meta-objective is
        nearest (relative difference). The earliest of equals.

        Raises `UserError` when there is no row.
        """
        if not rows:
            raise UserError("momentum stage: there are no checkpoints to choose from")
        like_momentum = [row for row in rows if self.near(row.meta_objective, tuned)]
        if like_momentum:
            return min(like_momentum, key=lambda row: max(self.strain(row, tuned).values()))
        return min(rows, key=lambda row: self.strain(row, tuned)["meta_objective"])


def operating_points(problems: ProblemSet) -> Callable[[MetaOptimizer], OperatingPoint]:
    """A function that gives the fixed point an optimizer reaches on ``problems``, and its modes.

    Compiled once for all optimizers of one architecture; it raises `UserError` where there is
    no fixed point.
    """
    histories = problems.gradient_histories(_as_optax, HISTORIES)
    step: StepMap | None = None

    def point(optimizer: MetaOptimizer) -> OperatingPoint:
        nonlocal step
        step = step_map(optimizer) if step is None else step.with_parameters(optimizer)
        return operating_point(step, histories(optimizer))

    return point


class MomentumComparison:
    """Measures checkpoints of one learned optimizer against tuned momentum.

    Everything is compiled once, for all checkpoints of one architecture.
    ``alpha``, ``beta``: the best tuned momentum's.
    """

    def __init__(self, validation: ProblemSet, alpha: float, beta: float) -> None:
        self.validation = validation
        self.momentum_curves = validation.curves(momentum)
        self.learned_curves = validation.curves(_as_optax)
        self.operating_point = operating_points(validation)
        score = validation.score(self.momentum_curves(alpha, beta))
        self.tuned = TunedMomentum(alpha, beta, score)

    def one_mode_curves(self, point: OperatingPoint) -> Losses:
        """Losses [problems, T + 1] of the optimizer made of the leading mode alone."""
        return self.learned_curves(reduced_system(point.modes, keep=[0], h0=point.h0))

    def measure(self, meta_step: int, optimizer: MetaOptimizer) -> StageRow:
        """`row` of ``optimizer``, run here whole and reduced to its leading mode.

        Raises `UserError` where it has no fixed point.
        """
        point = self.operating_point(optimizer)
        full, one_mode = self.learned_curves(optimizer), self.one_mode_curves(point)
        return self.row(meta_step, point, full, one_mode)

    def row(
        self, meta_step: int, point: OperatingPoint, full: Losses, one_mode: Losses
    ) -> StageRow:
        """Measure one checkpoint by its losses, and its leading mode's, on the problems."""
        validation, modes = self.validation, point.modes
        alpha, beta = modes.alpha[0], modes.beta[0]
        gain_gap, rate_ratio = _prominence(modes)
        extracted = self.momentum_curves(alpha.real, beta.real)
        return StageRow(
            meta_step=meta_step,
            meta_objective=validation.score(full),
            alpha=float(alpha.real),
            beta=float(beta.real),
            oscillating=bool(beta.imag != 0),
            gain_gap=gain_gap,
            rate_ratio=rate_ratio,
            momentum_ratio=validation.score(extracted) / self.tuned.meta_objective,
            deviation=deviation(
                validation.mean_curve(full).mean, validation.mean_curve(one_mode).mean
            ),
        )


def _departure(value: float, reference: float) -> float:
    """The size of their relative difference."""
    return abs(value / reference - 1.0)


def _as_optax(optimizer: MetaOptimizer) -> optax.GradientTransformation:
    return optimizer.as_optax()


def _prominence(modes: Eigenmodes) -> tuple[float, float]:
    """The leading mode's gain over the next one's, and its |α| over the others' median."""
    others = slice(2 if modes.beta[0].imag != 0 else 1, None)
    next_gain = np.max(modes.gain[others], initial=0.0)
    bulk = np.median(np.abs(modes.alpha[others])) if len(modes.alpha[others]) else 0.0
    with np.errstate(divide="ignore", invalid="ignore"):
        gap = np.float64(modes.gain[0]) / next_gain
        return float(gap), float(np.float64(np.abs(modes.alpha[0])) / bulk)


def deviation(full: Float[np.ndarray, " steps"], reduced: Float[np.ndarray, " steps"]) -> float:
    """Median over steps 1 … T of |reduced/full − 1|, of two mean loss curves."""
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        return float(np.median(np.abs(reduced[1:] / full[1:] - 1.0)))
