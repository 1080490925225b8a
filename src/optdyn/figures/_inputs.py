"""What figures are drawn from when plain arrays do not say enough."""

from __future__ import annotations

import dataclasses

from jaxtyping import Float
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
