"""The grid that a search draws from, every combination that it tried, and which is best."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float64, Int, Key

from optdyn.errors import UserError, require_positive_int, shown
from optdyn.inner_loop._objective import Objective
from optdyn.optimizers._baselines import Baseline
from optdyn.optimizers._search_space import Axis
from optdyn.random_streams import LARGEST_SEED
from optdyn.tasks import Task
from optdyn.tasks._description import describe_task

COUNTS = ("num_samples", "num_problems", "rescore_top", "rescore_problems", "max_rounds")


@dataclasses.dataclass(frozen=True)
class Grid:
    """Every combination of the values on ``axes``; a point is one index an axis."""

    axes: tuple[Axis, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The hyperparameters, in the order of ``axes``."""
        return tuple(axis.name for axis in self.axes)

    @property
    def size(self) -> int:
        """The number of points."""
        return math.prod(axis.points for axis in self.axes)

    def sample(self, key: Key[Array, ""], count: int) -> Int[np.ndarray, "count axes"]:
        """Draw ``count`` distinct points, each equally likely (all points, if there are fewer)."""
        require_positive_int("num_samples", count)
        flat = jax.random.choice(key, self.size, (min(count, self.size),), replace=False)
        shape = tuple(axis.points for axis in self.axes)
        return np.stack(np.unravel_index(np.asarray(flat), shape), axis=1).astype(np.int32)

    def values(
        self, indices: Int[np.ndarray, "count axes"]
    ) -> dict[str, Float64[np.ndarray, " count"]]:
        """The hyperparameters at grid points."""
        return {
            axis.name: axis.values()[column]
            for axis, column in zip(self.axes, np.asarray(indices).T, strict=True)
        }

    def on_edge(self, indices: Int[np.ndarray, " axes"]) -> dict[str, str]:
        """The axes on whose first ("low") or last ("high") point a grid point lies.

        A physical limit (such as β = 0) is no edge: there is nothing beyond it.
        """
        return {axis.name: side for axis, side in self._ends(indices) if not axis.at_limit(side)}

    def at_limits(self, indices: Int[np.ndarray, " axes"]) -> dict[str, str]:
        """As `on_edge`, the axes on whose physical limit a grid point lies."""
        return {axis.name: side for axis, side in self._ends(indices) if axis.at_limit(side)}

    def _ends(self, indices: Int[np.ndarray, " axes"]) -> list[tuple[Axis, str]]:
        sides = [(a, a.side_of(int(i))) for a, i in zip(self.axes, indices, strict=True)]
        return [(axis, side) for axis, side in sides if side is not None]

    def widened(self, edges: Mapping[str, str]) -> Grid:
        """The grid with each axis named in ``edges`` extended on that side."""
        return Grid(tuple(a.widened(edges[a.name]) if a.name in edges else a for a in self.axes))


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
        require_positive_int("seed", self.seed, minimum=0, maximum=LARGEST_SEED)

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
                "diverged (give a grid with smaller learning rates)"
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
    return Best(
        hyperparameters={
            name: float(column[row]) for name, column in table.hyperparameters().items()
        },
        score=float(rescores[row]),
        tuning_score=float(table.scores[row]),
        row=row,
        edges=table.grid.on_edge(table.indices[row]),
        limits=table.grid.at_limits(table.indices[row]),
    )


def is_finished(table: SearchTable) -> bool:
    """Whether every row is scored, and the winner interior or the last round over."""
    if table.to_score().size or table.to_rescore().size:
        return False
    return not best(table).edges or table.round + 1 >= table.settings.max_rounds
