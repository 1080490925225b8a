"""Every combination that a search tried, and which is best."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from optdyn.errors import UserError, require_positive_int, shown
from optdyn.inner_loop._objective import Objective
from optdyn.random_streams import LARGEST_SEED
from optdyn.search._grid import Grid
from optdyn.tasks._description import describe_task

if TYPE_CHECKING:
    from jaxtyping import Float64, Int

    from optdyn.optimizers._baselines import Baseline
    from optdyn.tasks import Task

COUNTS = ("num_samples", "num_problems", "rescore_top", "rescore_problems", "max_rounds")


@dataclasses.dataclass(frozen=True)
class SearchProtocol:
    """How a search is done; the defaults are the paper's (C.3).

    ``num_samples`` distinct combinations are scored on ``num_problems`` problems; the best
    ``rescore_top`` of them again on ``rescore_problems`` others. ``grid``: which they are
    drawn from (None: the baseline's own). A grid whose best lies on an edge is widened, for
    at most ``max_rounds`` rounds in all. ``stand_in``: options that stand over the task's own
    where all combinations are scored, such as fewer points of a data set; the best are scored
    again on the task itself, so that it judges the winner.

    Raises `UserError` for a bad count, or what is no grid.
    """

    objective: Objective = Objective()
    num_samples: int = 2500
    num_problems: int = 32
    rescore_top: int = 50
    rescore_problems: int = 64
    max_rounds: int = 8
    grid: Grid | None = None
    stand_in: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in COUNTS:
            require_positive_int(name, getattr(self, name))
        if self.grid is not None and not isinstance(self.grid, Grid):
            raise UserError(f"grid: {shown(self.grid)} is not allowed (a Grid)")


@dataclasses.dataclass(frozen=True)
class SearchSettings:
    """What a search is determined by: the same settings give the same table."""

    baseline: str
    task: str
    task_options: dict[str, Any]
    seed: int
    grid: Grid
    """The declared grid, from which widening starts."""
    num_samples: int = 2500
    num_problems: int = 32
    num_steps: int = 200
    normalization: str = "none"
    rescore_top: int = 50
    rescore_problems: int = 64
    max_rounds: int = 8
    stand_in: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in COUNTS:
            require_positive_int(name, getattr(self, name))
        if not isinstance(self.grid, Grid):
            raise UserError(f"grid: {shown(self.grid)} is not allowed (a Grid)")
        require_positive_int("seed", self.seed, minimum=0, maximum=LARGEST_SEED)
        _ = self.objective

    @classmethod
    def of(
        cls, baseline: Baseline, task: Task, seed: int, protocol: SearchProtocol
    ) -> SearchSettings:
        """The settings of a search by ``protocol``."""
        described = describe_task(task)
        return cls(
            baseline=baseline.name,
            task=described.name,
            task_options=described.options,
            seed=seed,
            grid=Grid(baseline.grid) if protocol.grid is None else protocol.grid,
            num_steps=protocol.objective.num_steps,
            normalization=protocol.objective.normalization,
            stand_in=protocol.stand_in,
            **{name: getattr(protocol, name) for name in COUNTS},
        )

    @property
    def objective(self) -> Objective:
        """What each combination is judged by."""
        return Objective(self.num_steps, self.normalization)


def require_same_settings(found: SearchSettings, expected: SearchSettings) -> None:
    """Raise `UserError` naming the first setting in which a stored search differs."""
    for field in dataclasses.fields(SearchSettings):
        stored, wanted = getattr(found, field.name), getattr(expected, field.name)
        if stored != wanted:
            raise UserError(
                f"stored search of {found.baseline} on {found.task}: {field.name} is {stored!r}, "
                f"not {wanted!r} (use the same settings or another folder)"
            )


@dataclasses.dataclass(frozen=True)
class Round:
    """A finished round whose best combination lay on an edge of its grid."""

    grid: Grid
    hyperparameters: dict[str, float]
    score: float
    edges: dict[str, str]


@dataclasses.dataclass(frozen=True, eq=False)
class SearchTable:
    """The combinations of one round of a search, finished or not.

    Row i is the grid point ``indices[i]``; ``scores[i]`` its meta-objective
    averaged over the tuning problems, ``rescores[i]`` over the rescoring
    problems. NaN: not (yet) scored; +inf: diverged. ``earlier`` tells why the
    grid was widened, once for each round before this one.
    """

    settings: SearchSettings
    grid: Grid
    indices: Int[np.ndarray, "rows axes"]
    scores: Float64[np.ndarray, " rows"]
    rescores: Float64[np.ndarray, " rows"]
    earlier: tuple[Round, ...] = ()

    @property
    def round(self) -> int:
        """This round's number, from 0."""
        return len(self.earlier)

    def hyperparameters(self) -> dict[str, Float64[np.ndarray, " rows"]]:
        """The value of each hyperparameter, one a row."""
        return self.grid.values(self.indices)

    def to_score(self) -> Int[np.ndarray, " pending"]:
        """The rows not scored yet."""
        return np.flatnonzero(np.isnan(self.scores))

    def to_rescore(self) -> Int[np.ndarray, " pending"]:
        """Of the rows with the best scores, those not rescored yet, best first.

        Raises `UserError` when every combination diverged.
        """
        ranked = np.argsort(self.scores, kind="stable")[: self.settings.rescore_top]
        top = ranked[np.isfinite(self.scores[ranked])]
        if top.size == 0:
            raise UserError(
                f"tuning {self.settings.baseline} on {self.settings.task}: every combination "
                "diverged (a grid with smaller learning rates is needed)"
            )
        return top[np.isnan(self.rescores[top])]


@dataclasses.dataclass(frozen=True)
class Best:
    """The combination with the lowest rescore.

    ``score`` is that rescore, ``tuning_score`` what it was selected by;
    ``edges`` the axes on whose edge it lies (empty: interior), ``limits`` those
    on which it lies at a physical limit.
    """

    hyperparameters: dict[str, float]
    score: float
    tuning_score: float
    row: int
    edges: dict[str, str]
    limits: dict[str, str]


def best(table: SearchTable) -> Best:
    """The best combination of a finished search.

    Raises `UserError` when the table holds no rescored combination that converged.
    """
    rescores = np.where(np.isnan(table.rescores), np.inf, table.rescores)
    row = int(np.argmin(rescores)) if rescores.size else -1
    if row < 0 or not np.isfinite(rescores[row]):
        raise UserError(
            f"tuning {table.settings.baseline} on {table.settings.task}: no combination has "
            "a finite score on the rescoring problems"
        )
    indices = table.indices[row]
    sides = {axis: axis.side_of(int(i)) for axis, i in zip(table.grid.axes, indices, strict=True)}
    return Best(
        hyperparameters={
            name: float(column[row]) for name, column in table.hyperparameters().items()
        },
        score=float(rescores[row]),
        tuning_score=float(table.scores[row]),
        row=row,
        edges=table.grid.on_edge(indices),
        limits={
            axis.name: side
            for axis, side in sides.items()
            if side is not None and axis.at_limit(side)
        },
    )


def is_finished(table: SearchTable) -> bool:
    """Whether every row is scored, and the winner interior or the last round over."""
    if table.to_score().size or table.to_rescore().size:
        return False
    return not best(table).edges or table.round + 1 >= table.settings.max_rounds
