"""The grid of hyperparameter combinations that a search draws from."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import jax
import numpy as np

from optdyn.errors import require_positive_int
from optdyn.optimizers._search_space import Axis

if TYPE_CHECKING:
    from jaxtyping import Array, Float64, Int, Key


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
        sides = {axis: axis.side_of(int(i)) for axis, i in zip(self.axes, indices, strict=True)}
        return {
            axis.name: side
            for axis, side in sides.items()
            if side is not None and not axis.at_limit(side)
        }

    def widened(self, edges: Mapping[str, str]) -> Grid:
        """The grid with each axis named in ``edges`` extended on that side."""
        return Grid(
            tuple(
                axis.widened(edges[axis.name]) if axis.name in edges else axis for axis in self.axes
            )
        )
