"""The finite set of values that a search tries for one hyperparameter."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from jaxtyping import Float64

from optdyn.errors import UserError, require_choice, require_number, require_positive_int, shown

KINDS = ("log", "one_minus_log")
SIDES = ("low", "high")
LIMITS = {"log": (1e-30, 1e30), "one_minus_log": (0.0, 1.0 - 1e-6)}
"""The values beyond which no axis goes: float32's range; decay rates in [0, 1)."""


@dataclasses.dataclass(frozen=True)
class Axis:
    """``points`` values of the hyperparameter ``name`` from ``low`` to ``high``, ascending.

    ``kind="log"``: the values are log-spaced. ``kind="one_minus_log"``: one
    minus the value is, which spaces decay rates by their timescale 1/(1 − β).
    """

    name: str
    kind: str
    low: float
    high: float
    points: int

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise UserError(f"axis: name {shown(self.name)} is not allowed (a text)")
        require_choice(f"axis {self.name}.kind", self.kind, list(KINDS))
        require_positive_int(f"axis {self.name}.points", self.points, minimum=3)
        for side in SIDES:
            require_number(f"axis {self.name}.{side}", getattr(self, side), inclusive=True)
        least, most = LIMITS[self.kind]
        if not least <= self.low < self.high <= most:
            raise UserError(
                f"axis {self.name}: low {self.low!r}, high {self.high!r} are not allowed "
                f"({least:g} <= low < high <= {most:g})"
            )

    def values(self) -> Float64[np.ndarray, " points"]:
        """The values, ascending."""
        if self.kind == "log":
            return np.geomspace(self.low, self.high, self.points)
        return 1.0 - np.geomspace(1.0 - self.low, 1.0 - self.high, self.points)

    def side_of(self, index: int) -> str | None:
        """``"low"`` or ``"high"`` where ``index`` is the first or last point, else None."""
        return {0: "low", self.points - 1: "high"}.get(index)

    def at_limit(self, side: str) -> bool:
        """Whether that end cannot be moved outwards, such as β = 0."""
        least, most = LIMITS[self.kind]
        return self.low <= least if side == "low" else self.high >= most

    def widened(self, side: str) -> Axis:
        """The axis extended by half its (logarithmic) length on one side, as finely spaced.

        It stops at the limit of its kind, and is unchanged where it is there already.
        """
        require_choice(f"axis {self.name}: side", side, list(SIDES))
        start, stop = self._logarithms(self.low, self.high)
        spacing = (stop - start) / (self.points - 1)
        extra = spacing * ((self.points - 1) // 2 + 1)
        least, most = LIMITS[self.kind]
        low, high = self.low, self.high
        if side == "low":
            low = max(least, self._value(start - extra))
        else:
            high = min(most, self._value(stop + extra))
        start, stop = self._logarithms(low, high)
        points = math.ceil(round((stop - start) / spacing, 6)) + 1
        return dataclasses.replace(self, low=low, high=high, points=points)

    def _logarithms(self, *values: float) -> tuple[float, ...]:
        """Where the values lie on the evenly spaced scale."""
        if self.kind == "log":
            return tuple(math.log(value) for value in values)
        return tuple(math.log(1.0 - value) for value in values)

    def _value(self, logarithm: float) -> float:
        return math.exp(logarithm) if self.kind == "log" else 1.0 - math.exp(logarithm)
